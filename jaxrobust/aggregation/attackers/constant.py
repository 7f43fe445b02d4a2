r"""A constant in place of a gradient: a straggler whose buffer was never filled.

.. math:: b_{ij} = v
"""

import math

import jax.numpy as jnp

from jaxrobust.aggregation.attackers.attacker import Attacker
from jaxrobust.typing import Array, Key


def constant(value: float = 0.0) -> Attacker:
    r"""Send the same number in every coordinate.

    .. math:: b_{ij} = v

    Args:
      value: v, finite; 0 is what a message that never came reads as.

    Returns:
      An `Attacker`.

    Raises:
      ValueError: for a value that is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> constant(3.0)(None, jnp.zeros((2, 2)), jnp.zeros((1, 2))).tolist()
      [[3.0, 3.0]]
    """
    if not math.isfinite(value):
        raise ValueError(f"value must be finite, got {value}: not_finite({value}) sends it")

    def attack(key: Key | None, honest: Array, own: Array) -> Array:
        del key, honest
        return jnp.full_like(own, value)

    return attack
