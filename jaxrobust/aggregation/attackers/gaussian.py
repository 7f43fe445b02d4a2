r"""Gaussian noise in place of a gradient.

.. math:: b_i \sim N(0, \sigma^2 I)
"""

import jax

from jaxrobust.aggregation.attackers.attacker import Attacker, needed
from jaxrobust.typing import Array, Key


def gaussian(sigma: float = 200.0) -> Attacker:
    r"""Send noise, each faulty worker its own.

    .. math:: b_i \sim N(0, \sigma^2 I)

    Args:
      sigma: standard deviation > 0 of a coordinate; the paper's is 200.

    Returns:
      An `Attacker`; it raises ValueError without a key.

    Raises:
      ValueError: for a sigma that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> gaussian()(jax.random.key(0), jnp.zeros((3, 4)), jnp.zeros((2, 4))).shape
      (2, 4)

    Reference: Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries: Byzantine Tolerant
    Gradient Descent", https://arxiv.org/abs/1703.02757, 2017 (section 5).
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")

    def attack(key: Key | None, honest: Array, own: Array) -> Array:
        del honest
        return sigma * jax.random.normal(needed(key), own.shape, own.dtype)

    return attack
