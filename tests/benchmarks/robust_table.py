"""Plain training, adversarial training, TRADES, SOAR and FOAR under PGD, AutoAttack and the Fourier attack.

    python tests/benchmarks/robust_table.py digits RESULTS.jsonl [METHOD ...]       train what is missing, five seeds
    python tests/benchmarks/robust_table.py DIRECTORY RESULTS.jsonl [METHOD ...]    CIFAR-10 from there, three seeds
    python tests/benchmarks/robust_table.py table RESULTS.jsonl ...                 print the tables

All methods of a table have one network and one schedule: on the digits those of configs/digits_trades.py; on CIFAR-10 a
ResNet-8 without batch norm for two epochs, data and optimizer of configs/cifar10_trades.py. SOAR is the paper's: one
draw, differences of gradients of length 0.01, one PGD step at first. Nothing was chosen by what the table shows.

A run adds a row to the file, and stays in the folder RESULTS beside it: without its row it is attacked again, and not
trained again. In a row are accuracy before and after each attack, on the same first test images. AutoAttack is the
standard suite in l-infinity; the Fourier attack is PGD on the logits' margin. Beside it, for attacks in each p-norm,
the share of a perturbation's energy in its strongest tenth of the frequencies, against a random perturbation of equal
norm brought into the box: means over the images, and p of Wilcoxon's signed-rank test that the attack's is larger.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxrobust import attacks, geometry, models, objectives, train
from jaxrobust.geometry import within

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = ("plain", "pgd_at", "trades", "soar", "foar")
BALLS = {"linf": geometry.linf(), "l2": geometry.l2(), "l1": geometry.l1()}
BALL = BALLS["linf"]
ACCURACIES = ("clean", "pgd-20", "autoattack", "fourier_linf")
KEY = jax.random.key(0)


class Setting(NamedTuple):
    """What a table is measured on.

    Attributes:
      build: `(directory, steps, seed) -> Experiment`, with TRADES as its objective.
      radii: of each p-norm's attack; "linf" is also that of training.
      fourier: radius of the Fourier attack.
      beta: of TRADES.
      attack_steps: in training; each has 2.5 / attack_steps of the radius.
      steps: parameter updates.
      seeds: how many.
      examples: test images that are attacked.
    """

    build: Callable
    radii: dict
    fourier: float
    beta: float
    attack_steps: int
    steps: int
    seeds: int
    examples: int


def digits(directory, steps, seed):
    """The network and the schedule of the digits."""
    del directory
    return train.configure(CONFIGS / "digits_trades.py", {"steps": steps, "seed": seed}).build()


def cifar10(directory, steps, seed):
    """ResNet-8 with the schedule of the small network."""
    flags = {"data_dir": directory, "steps": steps, "seed": seed}
    network = models.resnet8(mean=models.CIFAR10_MEAN, std=models.CIFAR10_STD)
    return replace(train.configure(CONFIGS / "cifar10_trades.py", flags).build(), model=network)


SETTINGS = {
    "digits": Setting(digits, {"linf": 0.1, "l2": 0.4, "l1": 4.0}, 0.08, 3.0, 10, 2000, 5, 359),
    "cifar10": Setting(cifar10, {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}, 8 / 255, 6.0, 5, 780, 3, 128),
}


def objective(setting, method):
    """What a method minimizes."""
    radius, steps = setting.radii["linf"], setting.attack_steps
    return {
        "plain": lambda: objectives.cross_entropy(),
        "pgd_at": lambda: objectives.adversarial(attacks.pgd(BALL, radius, steps=steps)),
        "trades": lambda: objectives.trades(BALL, radius, beta=setting.beta, steps=steps),
        "soar": lambda: objectives.soar(BALL, radius, finite_difference=0.01),
        "foar": lambda: objectives.foar(BALL, radius),
    }[method]()


def run(place, method, seed, directory, *, steps=None, examples=None, keep=None):
    """Train one method with one seed, or take it from the folder `keep`, and attack it."""
    setting, began = SETTINGS[place], time.perf_counter()
    built = setting.build(directory, steps or setting.steps, seed)
    # Every evaluation is this file's own; what `fit` asks for at the end is the clean accuracy alone.
    unseen = {"evaluate": attacks.accuracy(examples=1), "final": None, "evaluate_every": 0, "checkpoint_every": 0}
    experiment = replace(built, objective=objective(setting, method), **unseen)
    folder = keep and Path(keep) / f"{place}-{method}-{seed}"
    fitted = train.fit(experiment, folder, devices=jax.devices()[:1])
    trained = time.perf_counter()
    count = examples or setting.examples
    batch = built.test.batch(built.test.init(KEY), 0, jnp.arange(count), count)
    found = robustness(setting, fitted.predict, batch.inputs, batch.targets)
    return {
        "place": place,
        "method": method,
        "seed": seed,
        "steps": steps or setting.steps,
        "examples": count,
        **found,
        "shares": {norm: shares(norm, setting, fitted.predict, batch) for norm in BALLS},
        "training_seconds": round(trained - began, 1),
        "evaluation_seconds": round(time.perf_counter() - trained, 1),
    }


def robustness(setting, predict, images, labels):
    """Accuracy before and after each attack."""
    # Imported here: training and the table do not need it.
    from jaxrobust.attacks.autoattack import autoattack

    radius, margin = setting.radii["linf"], attacks.losses.margin
    suites = {
        "pgd-20": {"pgd": attacks.pgd(BALL, radius, steps=20)},
        "autoattack": autoattack(BALL, radius),
        "fourier_linf": {
            "pgd": attacks.pgd(geometry.fourier_linf(), setting.fourier, steps=100, loss=margin),
        },
    }
    found = {name: attacks.evaluate(KEY, predict, images, labels, suite) for name, suite in suites.items()}
    return {"clean": found["pgd-20"].clean_accuracy} | {name: one.robust_accuracy for name, one in found.items()}


def shares(norm, setting, predict, batch):
    """Mean energy share of an attack's perturbations and of random ones, and p that the first is not larger."""
    ball, radius = BALLS[norm], setting.radii[norm]
    attack = attacks.pgd(ball, radius, steps=50, loss=attacks.losses.margin)

    @jax.jit
    def both(predict, images, labels):
        delta = attack(KEY, predict, images, labels) - images
        keys = jax.random.split(jax.random.key(1), len(images))

        def random(key, image, delta):
            drawn = ball.sample(key, image.shape)
            return within(ball, image, image + drawn * ball.norm(delta) / ball.norm(drawn), radius) - image

        return attacks.energy_share(delta), attacks.energy_share(jax.vmap(random)(keys, batch.inputs, delta))

    attacked, random = (np.asarray(found, np.float64) for found in both(predict, batch.inputs, batch.targets))
    p = stats.wilcoxon(attacked, random, alternative="greater").pvalue
    return {"attack": attacked.mean(), "random": random.mean(), "p": float(p)}


def table(rows):
    """Print accuracies in percent and energy shares, mean (least, most) over the seeds."""

    def cell(values):
        return f"{np.mean(values):.1f} ({min(values):.1f}, {max(values):.1f})"

    for place in dict.fromkeys(row["place"] for row in rows):
        here = [row for row in rows if row["place"] == place]
        print(f"{place}, first {here[0]['examples']} test images | {' | '.join(ACCURACIES)} | pgd-20 - autoattack")
        for method in dict.fromkeys(row["method"] for row in here):
            mine = [row for row in here if row["method"] == method]
            columns = [cell([100 * row[name] for row in mine]) for name in ACCURACIES]
            gap = cell([100 * (row["pgd-20"] - row["autoattack"]) for row in mine])
            print(f"{method}, {len(mine)} seeds | {' | '.join(columns)} | {gap}")
        print(f"{place}, energy in the strongest tenth of the frequencies, % | attack | random | largest p")
        for method in dict.fromkeys(row["method"] for row in here):
            for norm in BALLS:
                found = [row["shares"][norm] for row in here if row["method"] == method]
                columns = [cell([100 * share[name] for share in found]) for name in ("attack", "random")]
                print(f"{method}, {norm} | {' | '.join(columns)} | {max(share['p'] for share in found):.1e}")


def main(place, results, *methods):
    """Train and attack what the file does not hold yet."""
    path, directory = Path(results), place
    place = place if place == "digits" else "cifar10"
    for seed in range(SETTINGS[place].seeds):
        for method in methods or METHODS:
            rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            if any((row["place"], row["method"], row["seed"]) == (place, method, seed) for row in rows):
                continue
            row = run(place, method, seed, directory, keep=path.with_suffix(""))
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            found = ", ".join(f"{name} {100 * row[name]:.1f} %" for name in ACCURACIES)
            print(f"{method} seed {seed}: {found} in {row['training_seconds']} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "table":
        table([json.loads(line) for name in sys.argv[2:] for line in Path(name).read_text().splitlines()])
    else:
        main(*sys.argv[1:])
