"""Rules against attacks that are made for one of them: the recipe of configs/mnist_mixtailor.py.

    python tests/benchmarks/mixtailor.py table [digits | DIRECTORY of MNIST] [SEEDS [RULE ...]]
    python tests/benchmarks/mixtailor.py along [digits | DIRECTORY of MNIST]
    python tests/benchmarks/mixtailor.py convex

"table" prints test accuracy in percent after the run, mean (least) over seeds, with workers that draw from the same
examples and with workers that each draw from a twelfth in order of the labels. "along" trains with MixTailor and
prints, for points along the way, <E U, g> / |g|^2: U is what the rules of the pool make of the honest gradients and the
attack, E the mean over the pool and 30 batches, g the gradient over many others. Below 0 a step would climb. "convex"
prints the length of the gradient along a run on two convex problems: least squares that all workers solve with the same
parameters, and the digits' logistic regression, whose workers do not.
"""

import functools
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxrobust import data, train
from jaxrobust.aggregation import aggregate, rules
from jaxrobust.train.configuration import load_function
from jaxrobust.train.step import keys_of_run

CONFIG = Path(__file__).parents[2] / "configs" / "mnist_mixtailor.py"
RULES = ("mean", "krum", "median", "geometric_median", "bulyan", "mixtailor")
ATTACKS = ("none", "small_epsilon", "large_epsilon", "little_is_enough", "min_max")
WORKERS, FAULTY, POINTS, DRAWS = 12, 2, 10, 30


def directory_of(name):
    """The configuration's `data_dir`."""
    return "" if name == "digits" else name


def accuracy(**flags):
    """Of one run; 0 where it ended in numbers that are not finite."""
    configuration = train.configure(CONFIG, flags)
    try:
        return 100 * train.fit(configuration.build(), stream=open(os.devnull, "w")).evaluated.metrics["clean"]
    except train.Diverged:
        return 0.0


def table(name="digits", seeds="3", *chosen):
    """Print a table for each way of dividing the data."""
    began = time.perf_counter()
    for alike in (True, False):
        print(f"workers' data alike: {alike} | {' | '.join(ATTACKS)}", flush=True)
        for rule in chosen or RULES:
            cells = []
            for attack in ATTACKS:
                found = [
                    accuracy(data_dir=directory_of(name), rule=rule, attack=attack, alike=alike, seed=seed)
                    for seed in range(int(seeds))
                ]
                cells.append(f"{np.mean(found):.1f} ({min(found):.1f})")
            print(f"{rule} | {' | '.join(cells)}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")


def forged(attack, key, rows):
    """All workers' gradients, the first of them hostile."""
    if attack == "none":
        return rows
    attacker = load_function(CONFIG)[0].__globals__["ATTACKS"][attack]()
    return jnp.concatenate([attacker(key, rows[FAULTY:], rows[:FAULTY]), rows[FAULTY:]])


def expected(key, rows):
    """The mean over the pool of 64 of what its rules make of the workers' gradients."""
    pool = rules.mixtailor_pool(FAULTY)
    different = list(dict.fromkeys(pool))
    shares = jnp.array([pool.count(rule) / len(pool) for rule in different])
    return shares @ jnp.stack([aggregate(rule, rows, key=key) for rule in different])


def along(name="digits"):
    """Print the alignment along training, for each attack and way of dividing the data."""
    print("data alike | attack | <E U, g> / |g|^2 at points along training, least first | accuracy, %")
    for alike in (True, False):
        for attack in ATTACKS:
            flags = {"data_dir": directory_of(name), "attack": attack, "alike": alike}
            experiment = train.configure(CONFIG, flags).build()
            trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1]))
            state, reduction = trainer.init()
            source = trainer.place(experiment.data.init(keys_of_run(experiment.seed).data))
            lean, found = leaning(experiment, attack), []
            for step in range(experiment.steps):
                if step % (experiment.steps // POINTS) == 0:
                    found.append(float(lean(state.params["model"], source, step)))
                state, reduction, _ = trainer.step(state, reduction, source, ())
            points = ", ".join(f"{value:.2f}" for value in found)
            right = right_answers(experiment, state.params["model"])
            print(f"{alike} | {attack} | least {min(found):.3f}: {points} | {100 * right:.1f}", flush=True)


@functools.cache
def pool():
    """`(keys [n], rows [n, worker, d]) -> [d]`, the mean of `expected`: compiled once for all attacks and data."""
    return jax.jit(lambda keys, rows: jnp.mean(jax.lax.map(lambda one: expected(*one), (keys, rows)), axis=0))


def leaning(experiment, attack):
    """`(params, source, step) -> <E U, g> / |g|^2` with the gradients of one batch."""
    size = experiment.batch_size

    def loss(params, batch):
        keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(9), index))(batch.index)
        return jnp.mean(experiment.objective.losses((), keys, experiment.model, params, {}, batch)[0])

    def gradient(params, source, step, rows):
        return ravel_pytree(jax.grad(loss)(params, experiment.data.batch(source, step, rows, size)))[0]

    @jax.jit
    def sent(params, source, keys, draws):
        of_each = jnp.arange(size).reshape(WORKERS, -1)

        def one(key_and_draw):
            key, draw = key_and_draw
            return forged(attack, key, jax.vmap(lambda rows: gradient(params, source, draw, rows))(of_each))

        return jax.lax.map(one, (keys, draws))

    @jax.jit
    def whole(params, source):
        # In place of all examples, those of a hundred other batches.
        return jnp.mean(
            jax.lax.map(lambda other: gradient(params, source, other, jnp.arange(size)), 10**6 + jnp.arange(100)),
            axis=0,
        )

    def measured(params, source, step):
        # The expectation is over batches as well.
        draws = step + 2 * 10**6 + jnp.arange(DRAWS)
        keys = jax.vmap(lambda draw: jax.random.fold_in(jax.random.key(5), draw))(draws)
        mean, exact = pool()(keys, sent(params, source, keys, draws)), whole(params, source)
        return jnp.vdot(mean, exact) / jnp.vdot(exact, exact)

    return measured


def right_answers(experiment, params):
    """Share of the test examples."""
    test = experiment.test
    batch = test.batch(test.init(jax.random.key(0)), 0, jnp.arange(test.size), test.size)
    logits, _ = experiment.model.apply(params, {}, batch.inputs, train=False)
    return float(jnp.mean(jnp.argmax(logits, -1) == batch.targets))


def least_squares(alike):
    """Parameters and loss of linear regression without noise; where data differ, each worker has its own features."""
    inputs = jax.random.normal(jax.random.key(0), (WORKERS, 200, 20))
    scales = jnp.exp(jax.random.normal(jax.random.key(1), (WORKERS, 1, 20)))
    inputs = inputs if alike else inputs * scales
    targets = inputs @ jax.random.normal(jax.random.key(2), (20,))
    return jnp.zeros(20), lambda params, x, y: jnp.mean((x @ params - y) ** 2) / 2, inputs, targets


def logistic_regression(alike):
    """Parameters and loss of the digits' logistic regression, with a weight decay of 0.01."""
    source = data.digits().train
    batch = source.batch(source.init(jax.random.key(0)), 0, jnp.arange(source.size), source.size)
    count = source.size // WORKERS * WORKERS
    order = jnp.arange(count) if alike else jnp.argsort(batch.targets[:count], stable=True)
    inputs = batch.inputs.reshape(source.size, -1)[order].reshape(WORKERS, -1, 64)
    targets = batch.targets[order].reshape(WORKERS, -1)

    def loss(params, x, y):
        weights = params.reshape(64, 10)
        chosen = jax.nn.log_softmax(x @ weights)
        return -jnp.mean(jnp.take_along_axis(chosen, y[:, None], axis=1)) + 0.005 * jnp.sum(params**2)

    return jnp.zeros(640), loss, inputs, targets


def convex(steps="20000"):
    """Print the gradient's length, relative to the first, under every attack."""
    if int(steps) < 100:
        raise SystemExit(f"steps must be at least 100, got {steps}")
    marks = [int(steps) // 100, int(steps) // 10, int(steps)]
    rule = rules.mixtailor(rules.mixtailor_pool(FAULTY))
    print(f"problem | data alike | attack | gradient's length after {', '.join(map(str, marks))} steps over the first")
    # The pool of 64 rules is compiled once, for all problems and attacks.
    join = jax.jit(lambda key, rows: aggregate(rule, rows, key=key))
    forge = {attack: jax.jit(functools.partial(forged, attack)) for attack in ATTACKS}

    @jax.jit
    def split(number):
        return jax.random.split(jax.random.fold_in(jax.random.key(3), number))

    for problem, rate in ((least_squares, 0.05), (logistic_regression, 0.5)):
        for alike in (True, False):
            start, loss, inputs, targets = problem(alike)

            @jax.jit
            def whole(params, loss=loss, inputs=inputs, targets=targets):
                # The honest workers' examples: what the others hold is never seen.
                return jnp.mean(jax.vmap(jax.grad(loss), (None, 0, 0))(params, inputs, targets)[FAULTY:], axis=0)

            @jax.jit
            def gradients(draw, params, loss=loss, inputs=inputs, targets=targets):
                taken = jax.random.randint(draw, (WORKERS, 16), 0, inputs.shape[1])
                pick = jax.vmap(lambda rows, at: rows[at])
                return jax.vmap(jax.grad(loss), (None, 0, 0))(params, pick(inputs, taken), pick(targets, taken))

            for attack in ATTACKS:
                params, found = start, []
                for number in range(marks[-1]):
                    draw, key = split(number)
                    joined = join(key, forge[attack](key, gradients(draw, params)))
                    params = params - rate / np.sqrt(1 + number / 100) * joined
                    if number + 1 in marks:
                        found.append(float(jnp.linalg.norm(whole(params)) / jnp.linalg.norm(whole(start))))
                lengths = ", ".join(f"{value:.2g}" for value in found)
                print(f"{problem.__name__} | {alike} | {attack} | {lengths}", flush=True)


if __name__ == "__main__":
    {"table": table, "along": along, "convex": convex}[sys.argv[1]](*sys.argv[2:])
