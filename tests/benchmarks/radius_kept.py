"""The radius that linear classifiers keep, for every method, attack norm and ratio d / n (extra `cvxpy`).

    python tests/benchmarks/radius_kept.py [grid | table] [STEPS]

The whole grid of jaxrobust.implicit_bias.over_parametrization: 100 dimensions, six ratios, three seeds, every plain
method with its grid of step sizes or strengths tuned point by point, every normalized method with one (three for the
convolutional network). A row gives the share of the largest margin, mean over seeds. Beside it, in the same run, a
random part of the grid one problem and one value at a time, and the ratio of the times. `table` has five seeds of one
ratio, with the least of them.
"""

import sys
import time

import jax
import numpy as np

from jaxrobust import geometry, implicit_bias

RATIOS, SEEDS, SAMPLE = (1, 2, 4, 8, 16, 32), 3, 3
# The attack's norm, and the norm of the weights whose dual it is.
NORMS = {
    "linf": geometry.l1(),
    "l2": geometry.l2(),
    "l1": geometry.linf(),
    "Fourier-linf": geometry.fourier_l1(),
}


def best_margins(problems):
    """The largest margin of every problem, for every attack norm."""
    inputs, labels, present = map(np.asarray, problems)
    return {
        name: np.array(
            [
                implicit_bias.max_margin(x[keep], y[keep], norm).margin
                for x, y, keep in zip(inputs, labels, present > 0, strict=True)
            ]
        )
        for name, norm in NORMS.items()
    }


def every_method(steps):
    """Name -> method and its number of steps."""
    plain = {f"plain {name}": (method, steps) for name, method in implicit_bias.plain_methods().items()}
    normalized = implicit_bias.normalized_methods().items()
    return plain | {f"normalized {name}": (method, 6 * steps) for name, method in normalized}


def main(steps):
    """Print the grid, the seconds it took, and the ratio to one by one."""
    began, seconds = time.perf_counter(), {}
    # Problems of one ratio run together, those of several would all be padded to the most examples.
    problems = [implicit_bias.separable(jax.random.key(0), (ratio,), SEEDS) for ratio in RATIOS]
    best = [best_margins(some) for some in problems]
    methods = every_method(steps)
    print(f"attack norm | method | share of the largest radius at d / n = {RATIOS}")
    for name, (method, length) in methods.items():
        start = time.perf_counter()
        weights = [implicit_bias.solve(jax.random.key(1), method, some, length) for some in problems]
        jax.block_until_ready(weights)
        seconds[name] = time.perf_counter() - start
        for attack, norm in NORMS.items():
            shares = [
                np.nanmax(np.asarray(implicit_bias.margins(found, some, norm)) / most[attack][:, None], axis=1).mean()
                for found, some, most in zip(weights, problems, best, strict=True)
            ]
            print(f"{attack} | {name} | {' '.join(f'{share:.3f}' for share in shares)}", flush=True)
    print(f"whole grid: {time.perf_counter() - began:.0f} s, compilation and CVXPY included")
    one_by_one(methods, problems, seconds)


def one_by_one(methods, problems, seconds):
    """Time a random sample of the grid's runs alone, compiled before."""
    generator, alone, together = np.random.default_rng(0), 0.0, 0.0
    for name, (method, length) in methods.items():
        times = []
        for _ in range(SAMPLE):
            some = problems[generator.integers(len(problems))]
            which, value = generator.integers(SEEDS), generator.integers(len(method.values))
            one = implicit_bias.Problems(*(leaf[which : which + 1] for leaf in some))
            single = method._replace(values=method.values[value : value + 1])
            run = jax.jit(lambda key, one, m=single, length=length: implicit_bias.solve(key, m, one, length))
            jax.block_until_ready(run(jax.random.key(1), one))
            start = time.perf_counter()
            jax.block_until_ready(run(jax.random.key(1), one))
            times.append(time.perf_counter() - start)
        alone += len(problems) * SEEDS * len(method.values) * np.mean(times)
        together += seconds[name]
    print(
        f"one by one, from {SAMPLE} random runs of every method, without compilation: {alone:.0f} s; "
        f"together, with it: {together:.0f} s; ratio {alone / together:.1f}"
    )


def five_seeds(steps):
    """Print every method against every norm at d / n = 4: mean and least over five seeds."""
    problems = implicit_bias.separable(jax.random.key(0), (4,), 5)
    best = best_margins(problems)
    methods = every_method(steps)
    print(f"method | share of the largest radius against {', '.join(NORMS)}: mean (least) of five seeds at d / n = 4")
    for name, (method, length) in methods.items():
        weights = implicit_bias.solve(jax.random.key(1), method, problems, length)
        cells = []
        for attack, norm in NORMS.items():
            shares = np.nanmax(
                np.asarray(implicit_bias.margins(weights, problems, norm)) / best[attack][:, None], axis=1
            )
            cells.append(f"{shares.mean():.3f} ({shares.min():.3f})")
        print(f"{name} | {' | '.join(cells)}", flush=True)


if __name__ == "__main__":
    LENGTH = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    five_seeds(LENGTH) if sys.argv[1:2] == ["table"] else main(LENGTH)
