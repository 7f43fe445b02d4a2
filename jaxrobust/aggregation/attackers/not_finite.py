r"""Numbers that are none: what an overflow, a broken kernel or a cheap attack sends.

.. math:: b_{ij} \in \{ \mathrm{NaN}, \infty, -\infty \}
"""

import math

import jax.numpy as jnp

from jaxrobust.aggregation.attackers.attacker import Attacker
from jaxrobust.typing import Array, Key


def not_finite(value: float = math.nan) -> Attacker:
    r"""Send NaN or infinity in every coordinate.

    .. math:: b_{ij} = v

    Args:
      value: v: NaN, infinity or its opposite.

    Returns:
      An `Attacker`.

    Raises:
      ValueError: for a finite value.

    Example:
      >>> import jax.numpy as jnp
      >>> not_finite()(None, jnp.zeros((2, 2)), jnp.zeros((1, 2))).tolist()
      [[nan, nan]]
    """
    if math.isfinite(value):
        raise ValueError(f"value must not be finite, got {value}: constant({value}) sends it")

    def attack(key: Key | None, honest: Array, own: Array) -> Array:
        del key, honest
        return jnp.full_like(own, value)

    return attack
