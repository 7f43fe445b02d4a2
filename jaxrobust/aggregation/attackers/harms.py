"""What an attacker that searches maximizes: how far an aggregate has been led from the honest mean."""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp

from jaxrobust.typing import Array

Harm: TypeAlias = Callable[[Array, Array], Array]
"""`(aggregate [d], honest mean [d]) -> scalar`; the larger, the worse."""


def displacement(aggregate: Array, mean: Array) -> Array:
    r"""How far the aggregate lies from the honest mean.

    .. math:: \| F - \bar g \|_2

    Args:
      aggregate: `[d]`.
      mean: `[d]`.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> displacement(jnp.array([4.0, 4.0]), jnp.array([1.0, 0.0])).item()
      5.0
    """
    return jnp.sqrt(jnp.sum(jnp.square(aggregate - mean)))


def reversal(aggregate: Array, mean: Array) -> Array:
    r"""How far the aggregate points against the honest mean: above 0, descent becomes ascent.

    .. math:: -\langle F, \bar g \rangle

    Args:
      aggregate: `[d]`.
      mean: `[d]`.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> reversal(jnp.array([-2.0, 4.0]), jnp.array([1.0, 0.0])).item()
      2.0
    """
    return -jnp.sum(aggregate * mean)
