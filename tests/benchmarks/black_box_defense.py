"""A black box of the digits behind a denoiser: every way to its gradient, the same number of queries, three seeds.

    python tests/benchmarks/black_box_defense.py RESULTS.jsonl [ROW ...]         train and certify what is missing
    python tests/benchmarks/black_box_defense.py tune TUNING.jsonl [ROW ...]     the learning rates, seed 100
    python tests/benchmarks/black_box_defense.py table RESULTS.jsonl ...         print the table
    python tests/benchmarks/black_box_defense.py table TUNING.jsonl ...          print what was tuned

By configs/digits_black_box_defense.py. A query is one image that the black box answers for; those of training are
counted by the box itself, those of certifying are not among them. Every row has the same grid of learning rates. Each
is tried once, with another seed than those measured, on every fifth training example, which neither the denoiser nor
the black box was fitted on; the one with the best mean of certified accuracies at radii 0 and 0.25 (2,000 samples) is
the configuration's. No test example has a part in a choice. "denoising alone" leaves out the second term of the loss
and asks nothing.
"""

import dataclasses
import io
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from jaxrobust import train
from jaxrobust.train.configuration import load_function

CONFIG = Path(__file__).parents[2] / "configs" / "digits_black_box_defense.py"
FUNCTION, _ = load_function(CONFIG)
ROWS = {
    "no denoiser": {"method": "none"},
    "denoising alone": {"method": "first_order", "stability": 0.0},
    "random directions, weights": {"method": "random_directions"},
    "coordinates, interface": {"method": "interface"},
    "sparse coordinates, weights": {"method": "sparse"},
    "first order": {"method": "first_order"},
}
SEEDS, TUNING_SEED, RATES = (0, 1, 2), 100, (1e-3, 3e-3, 1e-2, 3e-2)
HELD_OUT = {"held_out": True, "samples": 2_000}


def run(row, seed, **flags):
    """Train and certify one row."""
    experiment = FUNCTION(**ROWS[row], seed=seed, **flags)
    box, asked = FUNCTION.__globals__["black_box"](flags.get("held_out", False)), []
    before, began = box.queries, time.process_time()

    def evaluate(key, predict, source):
        asked.append((box.queries - before, time.process_time() - began))
        return experiment.evaluate(key, predict, source)

    counted = dataclasses.replace(experiment, evaluate=evaluate)
    fitted = train.fit(counted, devices=jax.devices()[:1], stream=io.StringIO())
    if not fitted.finished:
        raise SystemExit(f"stopped in {row}, seed {seed}: the same command goes on with it from its first step")
    ((queries, seconds),) = asked
    last = [found for found in fitted.rows if "split" not in found][-1]
    return {
        "row": row,
        "seed": seed,
        "steps": experiment.steps,
        "queries": queries,
        "failures": len(box.failures),
        "radii": list(fitted.evaluated.curve),
        "certified": list(fitted.evaluated.curve.values()),
        "loss": last["loss"],
        "training_seconds": round(seconds, 1),
        "seconds": round(time.process_time() - began, 1),
    }


def measure(path, wanted):
    """Measure what the file does not hold yet."""
    for seed in SEEDS:
        for row in wanted or ROWS:
            keep(path, {"row": row, "seed": seed}, lambda row=row, seed=seed: run(row, seed))


def tune(path, wanted):
    """Try what the file does not hold yet."""
    for row in wanted or list(ROWS)[1:]:
        for rate in RATES:
            flags = {**HELD_OUT, "learning_rate": rate}
            about = {"row": row, "seed": TUNING_SEED, "rate": rate}
            keep(path, about, lambda row=row, flags=flags: run(row, TUNING_SEED, **flags))


def keep(path, about, measured):
    """Add a row to the file, unless it has it."""
    if any(about.items() <= row.items() for row in rows_of([path] if Path(path).exists() else [])):
        return
    row = about | measured()
    with Path(path).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(*about.values(), [f"{100 * value:.2f}" for value in row["certified"]], row["seconds"], flush=True)


def table(rows):
    """Print certified accuracy by radius, mean (least, most) of the seeds; of tuning, a line for each rate."""
    radii = rows[0]["radii"]
    print(
        "| row | queries | steps | " + " | ".join(f"r = {radius:g}" for radius in radii) + " | CPU seconds to train |"
    )
    print("|---" * (4 + len(radii)) + "|")
    for row, rate in dict.fromkeys((row["row"], row.get("rate")) for row in rows):
        mine = [each for each in rows if (each["row"], each.get("rate")) == (row, rate)]
        certified = 100 * np.array([found["certified"] for found in mine])
        cells = [f"{each.mean():.2f} % ({each.min():.2f} to {each.max():.2f})" for each in certified.T]
        name = row if rate is None else f"{row}, {rate:g}"
        seconds = np.mean([found["training_seconds"] for found in mine])
        asked = {f"{found['queries']:,}" for found in mine}
        print(f"| {name} | {', '.join(asked)} | {mine[0]['steps']} | {' | '.join(cells)} | {seconds:.0f} |")


def rows_of(names):
    """All rows of some files."""
    return [json.loads(line) for name in names for line in Path(name).read_text().splitlines()]


if __name__ == "__main__":
    if sys.argv[1] == "table":
        table(rows_of(sys.argv[2:]))
    elif sys.argv[1] == "tune":
        tune(sys.argv[2], sys.argv[3:])
    else:
        measure(sys.argv[1], sys.argv[2:])
