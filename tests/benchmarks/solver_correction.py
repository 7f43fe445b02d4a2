"""A coarse solver, corrected: every way to train the corrector, three seeds, the same windows and steps.

    python tests/benchmarks/solver_correction.py RESULTS.jsonl [METHOD ...]               train what is missing
    python tests/benchmarks/solver_correction.py RESULTS.jsonl kolmogorov [METHOD ...]    the same in two dimensions
    python tests/benchmarks/solver_correction.py table RESULTS.jsonl                      print the tables
    python tests/benchmarks/solver_correction.py gradients                                errors of difference quotients

The error is the mean absolute one over all steps of rollouts of test trajectories, each from its first state alone.
Queries are the steps of the NumPy solver that one update asks for, counted by the black box. "exponax" is first_order
with the peer's solver (extra `pde`), "forward" is zeroth_order with forward quotients.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import train
from jaxrobust.train.configuration import load_function
from jaxrobust.train.fit import predictor, sharded
from jaxrobust.train.step import keys_of_run
from jaxrobust.zeroth_order import coordinate

CONFIGS = Path(__file__).parents[2] / "configs"
SEEDS = {"kuramoto_sivashinsky": (0, 1, 2), "kolmogorov": (0,)}
# Smaller than the configurations' own: what two cores do in an hour.
SETTINGS = {
    "kuramoto_sivashinsky": {"batch_size": 4},
    "kolmogorov": {"batch_size": 2, "steps": 100},
}
METHODS = {
    "none": {"method": "none"},
    "supervised": {"method": "supervised"},
    "first_order": {"method": "first_order"},
    "interface": {"method": "interface"},
    "zeroth_order": {"method": "zeroth_order"},
    "exponax": {"method": "first_order", "exponax": True},
    "forward": {"method": "zeroth_order", "central": False},
}


def build(equation, method, seed):
    """The experiment of a row, and the black boxes that it asks."""
    function, _ = load_function(CONFIGS / f"{equation}_correction.py")
    names, boxes = function.__globals__, []
    library = names["zeroth_order"]

    class Counting:
        """The library, which keeps the black boxes that it makes."""

        def __getattr__(self, name):
            return getattr(library, name)

        def black_box(self, *arguments, **options):
            boxes.append(library.black_box(*arguments, **options))
            return boxes[-1]

    names["zeroth_order"] = Counting()
    return function(**SETTINGS[equation], **METHODS[method], seed=seed), boxes


def run(equation, method, seed):
    """Train one corrector."""
    experiment, boxes = build(equation, method, seed)
    trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1]))
    state, reduction = trainer.init()
    source = trainer.place(experiment.data.init(keys_of_run(seed).data))
    began = time.perf_counter()
    for _ in range(experiment.steps):
        state, reduction, metrics = trainer.step(state, reduction, source, ())
    jax.block_until_ready(state)
    seconds, asked = time.perf_counter() - began, sum(box.queries for box in boxes)
    found = experiment.evaluate(
        keys_of_run(seed).evaluation, predictor(trainer, state), sharded(experiment.test, trainer)
    )
    return {
        "equation": equation,
        "method": method,
        "seed": seed,
        **found.metrics,
        "loss": float(metrics["loss"]),
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "queries": asked / experiment.steps,
        "failures": sum(len(box.failures) for box in boxes),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "seconds": round(seconds, 1),
    }


def table(rows):
    """Print a table for each equation."""
    for equation in dict.fromkeys(row["equation"] for row in rows):
        mine = [row for row in rows if row["equation"] == equation]
        print(f"{equation}, {mine[0]['parameters']} parameters, batches of {mine[0]['batch_size']} windows")
        means = {}
        print(
            "method | rollout error, mean (least, most) | at the last step | updates | queries an update | s an update"
        )
        for method in METHODS:
            found = [row for row in mine if row["method"] == method]
            if not found:
                continue
            errors, last = ([row[name] for row in found] for name in ("rollout_loss", "final_loss"))
            means[method] = {row["seed"]: row["rollout_loss"] for row in found}
            print(
                f"{method} | {np.mean(errors):.4f} ({min(errors):.4f}, {max(errors):.4f}), {len(found)} seeds | "
                f"{np.mean(last):.3f} | {found[0]['steps']} | {found[0]['queries']:.0f} | "
                f"{np.mean([row['seconds'] / row['steps'] for row in found]):.3g}"
            )
        for one, two in (
            ("zeroth_order", "first_order"),
            ("interface", "first_order"),
            ("exponax", "first_order"),
            ("forward", "first_order"),
            ("zeroth_order", "supervised"),
        ):
            seeds = sorted(set(means.get(one, {})) & set(means.get(two, {})))
            if seeds:
                ratio = np.mean([means[one][seed] for seed in seeds]) / np.mean([means[two][seed] for seed in seeds])
                each = ", ".join(f"{100 * (means[one][seed] / means[two][seed] - 1):+.1f}" for seed in seeds)
                print(f"{one} against {two}: {100 * (ratio - 1):+.1f} % of the means; seed by seed {each} %")


def gradients():
    """Relative errors of difference quotients, at the start and near a minimum, against backpropagation."""
    experiment = train.configure(CONFIGS / "kuramoto_sivashinsky_correction.py", {"method": "first_order"}).build()
    trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1]))
    state, reduction = trainer.init()
    source = trainer.place(experiment.data.init(keys_of_run(experiment.seed).data))
    whole = experiment.data.batch(source, 0, jnp.arange(32), 32)

    def value(params):
        return jnp.mean(experiment.objective.losses((), None, experiment.model, params, {}, whole)[0])

    def vector(tree):
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])

    estimates = {
        f"{'central' if central else 'forward'} {smoothing:g}": jax.jit(
            lambda p, s=smoothing, c=central: vector(coordinate(s, c)(jax.random.key(0), value, p).gradient)
        )
        for central in (False, True)
        for smoothing in (1e-2, 1e-3)
    }
    print("step | norm of the gradient | " + " | ".join(estimates))
    for step in range(experiment.steps + 1):
        if step in (1, experiment.steps):
            params = state.params["model"]
            exact = vector(jax.grad(value)(params))
            errors = [float(jnp.linalg.norm(f(params) - exact) / jnp.linalg.norm(exact)) for f in estimates.values()]
            print(f"{step} | {jnp.linalg.norm(exact):.3g} | " + " | ".join(f"{error:.2g}" for error in errors))
        if step < experiment.steps:
            state, reduction, _ = trainer.step(state, reduction, source, ())


def main(results, *wanted):
    """Train what the file lacks."""
    path = Path(results)
    equation = "kolmogorov" if wanted[:1] == ("kolmogorov",) else "kuramoto_sivashinsky"
    methods = [name for name in wanted if name != "kolmogorov"] or METHODS
    for seed in SEEDS[equation]:
        for method in methods:
            rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            if any((row["equation"], row["method"], row["seed"]) == (equation, method, seed) for row in rows):
                continue
            row = run(equation, method, seed)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{equation} {method} seed {seed}: {row['rollout_loss']:.4f} in {row['seconds']} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "table":
        table([json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()])
    elif sys.argv[1] == "gradients":
        gradients()
    else:
        main(*sys.argv[1:])
