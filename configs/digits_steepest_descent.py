"""Steepest descent in a chosen norm on the digits: which perturbations does an optimizer's network withstand?

Paper: Faghri, Gowal, Vasconcelos, Fleet, Pedregosa and Le Roux, "Bridging the Gap Between Adversarial Robustness and
       Optimization Bias", https://arxiv.org/abs/2102.08868, 2021. Its theorems are about linear models; a network with
       a hidden layer is a question beyond them.
Command: jaxrobust train configs/digits_steepest_descent.py --norm l1
Expected: see README.md; all norms in one table: python tests/benchmarks/digits_bias.py
Device: two CPU cores. Time: half a minute.
"""

from typing import Literal

import optax

from jaxrobust import attacks, data, geometry, implicit_bias, models, train

NORMS = {
    # The norm, whether it is each leaf's own, and the first step's length in it.
    "l1": (geometry.l1(), False, 0.1),
    "l2": (geometry.l2(), False, 0.1),
    "linf": (geometry.linf(), False, 0.001),
    "spectral": (geometry.spectral(), True, 0.03),
}
# Radii in units of the images' range [0, 1], each for its own norm of the perturbation.
RADII = {"l1": 4.0, "l2": 0.4, "linf": 0.08, "fourier_linf": 0.08}


def experiment(
    *,
    norm: Literal["l1", "l2", "linf", "spectral"] = "l2",
    steps: int = 4000,
    batch_size: int = 1024,
    seed: int = 0,
) -> train.Experiment:
    """A network with one hidden layer, trained plainly by normalized steepest descent.

    Args:
      norm: that the optimizer descends in: l1 (coordinate descent), l2 (gradient descent), linf (sign descent) or
        spectral (each layer's matrix by itself).
      steps: parameter updates.
      batch_size: examples of one update, over all devices.
      seed: seed of parameters and data order.
    """
    digits = data.digits()
    geometry_, per_leaf, length = NORMS[norm]
    balls = {"l1": geometry.l1(), "l2": geometry.l2(), "linf": geometry.linf(), "fourier_linf": geometry.fourier_linf()}
    suite = {
        name: attacks.pgd(ball, RADII[name], steps=100, loss=attacks.losses.margin) for name, ball in balls.items()
    }
    return train.Experiment(
        model=models.mlp(10, widths=(64,)),
        data=digits.train,
        test=digits.test,
        optimizer=implicit_bias.steepest_descent(
            geometry_, optax.linear_schedule(length, 0.0, steps), normalized=True, per_leaf=per_leaf
        ),
        evaluate=attacks.accuracy({}),
        final=attacks.accuracy(suite),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        evaluate_every=1000,
        checkpoint_every=1000,
    )
