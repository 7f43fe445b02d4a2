"""What every estimator learns from the same number of forwards, five seeds; digits 64-32-10 and MNIST 14x14 196-16-10.

    python tests/benchmarks/equal_queries.py digits RESULTS.jsonl [METHOD ...]      measure what is missing
    python tests/benchmarks/equal_queries.py DIRECTORY RESULTS.jsonl [METHOD ...]   the same on MNIST's four idx files
    python tests/benchmarks/equal_queries.py table RESULTS.jsonl ...                print the tables
    python tests/benchmarks/equal_queries.py equal_steps                            digits, 300 steps for each

A query is one forward of a batch of 256. An estimator is charged what it reports, and beside it: two forwards for a
Jacobian-vector product and three for a step of backprop, the usual counts (on these networks, whose inputs need no
gradient, both multiply 2.1 times as much as a forward); 386 before the first step for the scores of ZO-GraSP, which the
network with seed 0 gives for all. Steps are what the budget pays for. SGD, momentum 0.9, cosine to 0, gradients clipped
to length 10. Every method has the same grid of rates; the one with the best accuracy (of equals the least loss) on
held-out training examples in a run with seed 0 is taken, and seeds 1 to 5 measure it on the test examples: no test
example has a part in a choice. MNIST is pooled by means of 2 x 2. With 16 hidden units one dense estimate fits into the
smallest budget.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from jaxrobust import backprop, data, models, train, zeroth_order
from jaxrobust.typing import Array, Estimator, Model, Source

BUDGETS, RATES, SEEDS = (5_000, 20_000, 72_000), (0.004, 0.016, 0.06, 0.25, 1.0), (1, 2, 3, 4, 5)
BATCH, SPARSITY, SCORING, EQUAL_STEPS, EQUAL_RATE = 256, 0.9, 192, 300, 0.1


@dataclass(frozen=True, eq=False)
class Problem:
    """A network and its examples; held-out ones are every fifth (digits) or twelfth (MNIST) of those to train on."""

    name: str
    model: Model
    train: Source
    validation: tuple[Array, Array]
    test: tuple[Array, Array]


class Method(NamedTuple):
    """A row.

    Attributes:
      make: `(key, params, shares) -> Estimator`.
      scored: whether it asks for shares, each leaf's, by ZO-GraSP's scores; others are given None.
      forwards: what a step is charged, of the queries that it reports.
      mapped: whether runs go side by side; under `vmap` an estimator that tells the host of faults would always do so.
    """

    make: Callable[..., Estimator]
    scored: bool = False
    forwards: Callable[[int], int] = lambda queries: queries
    mapped: bool = True


class Outcome(NamedTuple):
    """What runs gave, `[n]` each: queries of a step, accuracy and loss on held-out examples, accuracy on test ones."""

    queries: Array
    validation: Array
    loss: Array
    test: Array


def uniform(params, sparsity=SPARSITY):
    """Every matrix has the same share; biases are always looked at."""
    return jax.tree.map(lambda leaf: 1.0 if leaf.ndim < 2 else 1 - sparsity, params)


def sparse(shares, key, **options):
    """Selected coordinates."""
    return zeroth_order.coordinate(
        chunk_size=16, selection=zeroth_order.uniform_selection(shares, jax.random.fold_in(key, 1), **options)
    )


def by_importance(key, params, shares):
    """Coordinates drawn in proportion to |weight| + 0.01: a weight of 0 has its turn too."""
    del shares
    draws = round((1 - SPARSITY) * sum(leaf.size for leaf in jax.tree.leaves(params)))
    selection = zeroth_order.importance_selection(
        lambda params: jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.01, params), draws, jax.random.fold_in(key, 1)
    )
    return zeroth_order.coordinate(chunk_size=16, selection=selection)


def directions(count, **options):
    """A row of random directions."""
    return Method(lambda key, params, shares: zeroth_order.random_directions(count, **options))


METHODS = {
    "backprop": Method(lambda key, params, shares: backprop(), forwards=lambda queries: 3 * queries),
    "activation (units)": Method(lambda key, params, shares: zeroth_order.activation(), mapped=False),
    "coordinate, forward": Method(lambda key, params, shares: zeroth_order.coordinate(chunk_size=16)),
    "coordinate, central": Method(lambda key, params, shares: zeroth_order.coordinate(central=True, chunk_size=16)),
    "coordinate, 90 % sparse, ZO-GraSP's shares, dynamic": Method(
        lambda key, params, shares: sparse(shares, key), scored=True
    ),
    "coordinate, 90 % sparse, ZO-GraSP's shares, static": Method(
        lambda key, params, shares: sparse(shares, key, interval=None), scored=True
    ),
    "coordinate, 90 % sparse, uniform, dynamic": Method(lambda key, params, shares: sparse(uniform(params), key)),
    "coordinate, 90 % sparse, uniform, static": Method(
        lambda key, params, shares: sparse(uniform(params), key, interval=None)
    ),
    "coordinate, 90 % sparse, uniform, dynamic, rescaled": Method(
        lambda key, params, shares: sparse(uniform(params), key, rescale=True)
    ),
    "coordinate, 99 % sparse, uniform, dynamic, rescaled": Method(
        lambda key, params, shares: sparse(uniform(params, 0.99), key, rescale=True)
    ),
    "coordinate, 10 % by importance": Method(by_importance),
    "directions, Gaussian, 12": directions(12),
    "directions, Gaussian, 96": directions(96),
    "directions, Gaussian, both sides, 12": directions(12, antithetic=True),
    "directions, Gaussian, both sides, 96": directions(96, antithetic=True),
    "directions, sphere, 12": directions(12, kind="sphere"),
    "directions, sphere, 96": directions(96, kind="sphere"),
    "directions, signs, 12": directions(12, kind="rademacher"),
    "directions, signs, 96": directions(96, kind="rademacher"),
    "directions, orthogonal, 12": directions(12, kind="orthogonal"),
    "directions, orthogonal, 96": directions(96, kind="orthogonal"),
    "seed replay, 1": Method(lambda key, params, shares: zeroth_order.seed_replay()),
    "low rank 2, 12": Method(lambda key, params, shares: zeroth_order.low_rank(12)),
    "forward gradient, 12": Method(
        lambda key, params, shares: zeroth_order.forward_gradient(12), forwards=lambda queries: 2 * queries - 1
    ),
}
FAMILIES = {"coordinate": "coordinates", "directions": "random directions"}


@functools.cache
def problem_of(source: str) -> Problem:
    """The digits, or the MNIST files of a directory."""
    if source == "digits":
        splits = data.digits()
        (images, labels), test = whole(splits.train), whole(splits.test)
        every, width = 5, 32
    else:
        (images, labels), test = (
            whole(data.idx(*(Path(source) / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))))
            for part in ("train", "t10k")
        )
        (images, labels), test = (pooled(images), labels), (pooled(test[0]), test[1])
        every, width = 12, 16
    held = np.arange(len(images)) % every == every - 1
    return Problem(
        "digits" if source == "digits" else "MNIST 14x14",
        models.mlp(10, widths=(width,)),
        data.arrays(images[~held], labels[~held]),
        (jnp.asarray(images[held]), jnp.asarray(labels[held])),
        (jnp.asarray(test[0]), jnp.asarray(test[1])),
    )


def whole(source):
    """All images and labels of a source of arrays."""
    state = source.init(jax.random.key(0))
    return np.asarray(state.images), np.asarray(state.labels)


def pooled(images):
    """Means of 2 x 2 pixels, in [0, 1]."""
    count, height, width, _ = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2, 1).astype(np.float32)
    return blocks.mean((2, 4)) / np.float32(255)


def start(problem, seed):
    """Keys and first parameters of a run."""
    keys = train.keys_of_run(seed)
    params, _ = problem.model.init(jax.random.split(keys.init)[0], problem.test[0][:1])
    return keys, params


def losses_of(problem, source, step):
    """`params -> losses [batch]` on the batch of a step."""
    batch = problem.train.batch(source, step, jnp.arange(BATCH), BATCH)

    def losses(params):
        logits, _ = problem.model.apply(params, {}, batch.inputs, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    return losses


@functools.cache
def shares_of(problem):
    """ZO-GraSP's share of each leaf of the network with seed 0, and the forwards that its scores took."""

    @jax.jit
    def scores(seed):
        keys, params = start(problem, seed)
        losses = losses_of(problem, problem.train.init(keys.data), 0)
        estimator = zeroth_order.random_directions(SCORING)
        return zeroth_order.zero_order_grasp(jax.random.fold_in(keys.steps, 2), losses, params, estimator)

    found, queries = scores(0)
    return zeroth_order.layerwise_densities(found, SPARSITY), int(queries)


@functools.cache
def lanes(problem, method):
    """`(rates [n], seeds [n], steps) -> Outcome [n]`, jitted."""
    descent = optax.chain(optax.clip_by_global_norm(10.0), optax.trace(0.9))
    shares = shares_of(problem)[0] if METHODS[method].scored else None

    def scores(params, examples):
        logits, _ = problem.model.apply(params, {}, examples[0], train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples[1])
        return jnp.mean(jnp.argmax(logits, axis=1) == examples[1]), jnp.mean(losses)

    def run(rate, seed, steps):
        keys, params = start(problem, seed)
        estimator, source = METHODS[method].make(keys.steps, params, shares), problem.train.init(keys.data)

        def step(number, carry):
            params, momentum, state, _ = carry
            key = jax.random.fold_in(keys.steps, number)
            found = estimator(key, losses_of(problem, source, number), params, state)
            updates, momentum = descent.update(found.gradient, momentum)
            size = -rate * 0.5 * (1 + jnp.cos(jnp.pi * number / steps))
            return optax.apply_updates(params, optax.tree.scale(size, updates)), momentum, found.state, found.queries

        first = (params, descent.init(params), estimator.init(params), jnp.int32(0))
        params, _, _, queries = jax.lax.fori_loop(0, steps, step, first)
        return Outcome(queries, *scores(params, problem.validation), scores(params, problem.test)[0])

    if METHODS[method].mapped:
        return jax.jit(jax.vmap(run, in_axes=(0, 0, None)))
    return jax.jit(lambda rates, seeds, steps: jax.lax.map(lambda one: run(*one, steps), (rates, seeds)))


def outcomes(problem, method, rates, seeds, steps):
    """The `Outcome` of runs."""
    return jax.tree.map(np.asarray, lanes(problem, method)(jnp.array(rates), jnp.array(seeds), steps))


def measure(problem, method, budget):
    """A row of the results."""
    began, row = time.process_time(), {"data": problem.name, "method": method, "budget": budget}
    rates, tuned = np.array(RATES), len(RATES) * [0]
    forwards = METHODS[method].forwards(int(outcomes(problem, method, rates, tuned, 1).queries[0]))
    before = shares_of(problem)[1] if METHODS[method].scored else 0
    steps = (budget - before) // forwards
    row |= {"forwards": forwards, "before": before, "steps": steps}
    if not steps:
        return row | {"accuracy": []}
    found = outcomes(problem, method, rates, tuned, steps)
    # A run that diverged has a loss that is not a number: it comes last.
    order = np.lexsort((np.nan_to_num(found.loss, nan=np.inf), -found.validation))
    rate = RATES[int(order[0])]
    test = outcomes(problem, method, len(SEEDS) * [rate], SEEDS, steps).test
    row |= {"validation": found.validation.tolist(), "rate": rate, "seeds": SEEDS, "accuracy": test.tolist()}
    return row | {"seconds": round(time.process_time() - began, 1)}


def summary(values):
    """Mean and half of Student's 95 % interval, in points."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return 100 * np.mean(values), 100 * half


def cell(rows, method, budget):
    """Accuracy, interval and rate."""
    row = next((row for row in rows if (row["method"], row["budget"]) == (method, budget)), None)
    if row is None:
        return "?"
    if not row["accuracy"]:
        return "no step"
    mean, half = summary(row["accuracy"])
    return f"{mean:.1f} ± {half:.1f} ({row['rate']:g})"


def table(rows):
    """Print test accuracies, and what was gained by drawing coordinates anew and over the best random directions."""
    for name in dict.fromkeys(row["data"] for row in rows):
        mine = [row for row in rows if row["data"] == name]
        print(f"\n| {name} | forwards a step | " + " | ".join(f"{budget:,} forwards" for budget in BUDGETS) + " |")
        print("|---" * (2 + len(BUDGETS)) + "|")
        for method in METHODS:
            step = next((str(row["forwards"]) for row in mine if row["method"] == method), None)
            if step:
                print(f"| {method} | {step} | " + " | ".join(cell(mine, method, budget) for budget in BUDGETS) + " |")
        print()
        for budget in BUDGETS:
            means = {r["method"]: 100 * np.mean(r["accuracy"]) for r in mine if r["budget"] == budget and r["accuracy"]}
            for shares in ("ZO-GraSP's shares", "uniform"):
                masks = [f"coordinate, 90 % sparse, {shares}, {kind}" for kind in ("dynamic", "static")]
                if set(masks) <= set(means):
                    gain = means[masks[0]] - means[masks[1]]
                    print(f"{budget:,}: 90 % sparse, {shares}: dynamic {gain:+.1f} points against static")
            for family, words in FAMILIES.items():
                best = max((name for name in means if name.startswith(family)), key=means.get, default=None)
                if best:
                    print(f"{budget:,}: best of {words}: {best}, {means[best]:.1f} %")


def equal_steps():
    """Print the test accuracy of dense coordinates, of backprop, and of one random direction, in the same steps."""
    problem = problem_of("digits")
    METHODS["directions, Gaussian, 1"] = directions(1)
    for method in ("backprop", "coordinate, forward", "coordinate, central", "directions, Gaussian, 1"):
        mean, half = summary(outcomes(problem, method, len(SEEDS) * [EQUAL_RATE], SEEDS, EQUAL_STEPS).test)
        print(f"{method} | {EQUAL_STEPS} steps at {EQUAL_RATE} | {mean:.2f} ± {half:.2f} %", flush=True)


def main(source, results, *methods):
    """Measure what the file does not hold yet, small budgets first."""
    # Draws of half the work; these runs are on one device.
    jax.config.update("jax_threefry_partitionable", False)
    path, problem = Path(results), problem_of(source)
    for budget in BUDGETS:
        for method in methods or METHODS:
            row = {"data": problem.name, "method": method, "budget": budget}
            if any(row.items() <= other.items() for other in rows_of([path] if path.exists() else [])):
                continue
            row = measure(problem, method, budget)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row["data"], budget, method, cell([row], method, budget), row.get("seconds"), flush=True)


def rows_of(names):
    """All rows of some files."""
    return [json.loads(line) for name in names for line in Path(name).read_text().splitlines()]


if __name__ == "__main__":
    if sys.argv[1] == "table":
        table(rows_of(sys.argv[2:]))
    elif sys.argv[1] == "equal_steps":
        equal_steps()
    else:
        main(*sys.argv[1:])
