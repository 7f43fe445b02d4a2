"""Certified accuracy, as an evaluation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.certification.smoothing import ABSTAIN, certify, check_numbers
from jaxrobust.typing import Evaluated, Evaluation, Key, Predict, Source


def certified(
    sigma: float = 0.25,
    radii: Sequence[float] = (0.0, 0.25, 0.5, 0.75),
    *,
    examples: int | None = None,
    samples: int = 10_000,
    selection_samples: int = 100,
    failure_probability: float = 0.001,
    batch_size: int = 1000,
) -> Evaluation:
    r"""Build an evaluation of certified accuracy against the radius.

    .. math:: a(r) = \frac{1}{N} \sum_i [\hat y_i = y_i \text{ and } r_i > r], \quad a(0) \text{ counts } r_i > 0

    Args:
      sigma: deviation of the noise, in the images' units.
      radii: l2, where the curve is measured.
      examples: how many of the source's first examples are certified; all by default.
      samples: noisy copies behind each bound.
      selection_samples: those that choose its class.
      failure_probability: of one wrong certificate.
      batch_size: noisy copies at once.

    Returns:
      `(key, predict, source) -> Evaluated` for a source in order: metrics "certified" (at radius 0) and "abstained" in
      [0, 1], and the curve. An image that it abstains on counts as wrong.

    Raises:
      ValueError: for numbers out of their range.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust import certification, data
      >>> source = data.arrays(np.array([[0.2], [0.9]], np.float32), np.array([0, 1]), shuffle=False)
      >>> predict = lambda x: jnp.concatenate([0.5 - x, x - 0.5], 1)
      >>> evaluate = certification.certified(0.2, (0.0, 0.35), samples=1000)
      >>> evaluate(jax.random.key(0), predict, source).curve
      {0.0: 1.0, 0.35: 0.0}

    Reference: Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing",
    https://arxiv.org/abs/1902.02918, 2019.
    """
    numbers = {"samples": samples, "selection_samples": selection_samples, "batch_size": batch_size}
    check_numbers(sigma, failure_probability, **numbers)
    if any(radius < 0 for radius in radii):
        raise ValueError(f"radii must not be negative, got {tuple(radii)}")
    if examples is not None and examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")

    def evaluate(key: Key, predict: Predict, source: Source) -> Evaluated:
        count, state = source.size if examples is None else min(examples, source.size), source.init(key)
        batch = source.batch(state, 0, jnp.arange(count), source.size)
        labels, reached = np.asarray(batch.targets), np.full(count, -1.0)
        abstained = 0
        for number in range(count):
            found = certify(
                jax.random.fold_in(key, number),
                predict,
                batch.inputs[number],
                sigma=sigma,
                failure_probability=failure_probability,
                **numbers,
            )
            abstained += found.label == ABSTAIN
            if found.label == labels[number]:
                reached[number] = found.radius
        curve = {float(radius): float(np.mean(reached > radius)) for radius in radii}
        return Evaluated({"certified": float(np.mean(reached > 0)), "abstained": abstained / count}, curve, None)

    return evaluate
