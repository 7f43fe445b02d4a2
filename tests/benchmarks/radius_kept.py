"""The radius that linear classifiers keep, for every method, attack norm and ratio d / n (extra `cvxpy`).

    python tests/benchmarks/radius_kept.py [STEPS]

The whole grid of jaxrobust.implicit_bias.over_parametrization: 100 dimensions, six ratios, three seeds, every plain
method with its grid of step sizes or strengths tuned point by point, every normalized method with one. A row gives the
share of the largest margin, mean over seeds. Beside it, in the same run, a part of the grid one problem and one value
at a time, with everything compiled before, and the ratio of the times.
"""

import sys
import time

import jax
import numpy as np

from jaxrobust import geometry, implicit_bias

RATIOS, SEEDS = (1, 2, 4, 8, 16, 32), 3
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


def main(steps):
    """Print the grid, the seconds it took, and the ratio to one by one."""
    problems = implicit_bias.separable(jax.random.key(0), RATIOS, SEEDS)
    best = best_margins(problems)
    began, seconds = time.perf_counter(), {}
    methods = {f"plain {name}": (method, steps) for name, method in implicit_bias.plain_methods().items()}
    methods |= {
        f"normalized {name}": (method, 6 * steps) for name, method in implicit_bias.normalized_methods().items()
    }
    print(f"attack norm | method | share of the largest radius at d / n = {RATIOS}")
    for name, (method, length) in methods.items():
        start = time.perf_counter()
        weights = jax.block_until_ready(implicit_bias.solve(jax.random.key(1), method, problems, length))
        seconds[name] = time.perf_counter() - start
        for attack, norm in NORMS.items():
            shares = np.asarray(implicit_bias.margins(weights, problems, norm)) / best[attack][:, None]
            tuned = np.nanmax(shares, axis=1).reshape(len(RATIOS), SEEDS)
            print(f"{attack} | {name} | {' '.join(f'{share:.3f}' for share in tuned.mean(1))}", flush=True)
    print(f"whole grid: {time.perf_counter() - began:.0f} s, compilation included")
    for name in ("plain coordinate descent", "plain gradient descent", "plain convolutional network"):
        method, length = methods[name]
        alone = method._replace(values=method.values[:1])
        one = implicit_bias.Problems(*(leaf[:1] for leaf in problems))
        run = jax.jit(lambda key, one, alone=alone, length=length: implicit_bias.solve(key, alone, one, length))
        together = jax.jit(lambda key, all_, m=method, length=length: implicit_bias.solve(key, m, all_, length))
        times = []
        for function, given in ((run, one), (together, problems)):
            jax.block_until_ready(function(jax.random.key(1), given))
            start = time.perf_counter()
            jax.block_until_ready(function(jax.random.key(1), given))
            times.append(time.perf_counter() - start)
        count = len(problems.inputs) * len(method.values)
        print(
            f"{name}: {count} runs one by one {count * times[0]:.1f} s (one timed: {times[0]:.3f} s), "
            f"together {times[1]:.2f} s, ratio {count * times[0] / times[1]:.1f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
