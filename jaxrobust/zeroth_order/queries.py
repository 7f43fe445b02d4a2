"""Queries side by side: in chunks on one device, and split over the devices of a mapped axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrobust.aggregation import axes
from jaxrobust.typing import Array, AxisName


def answers(
    query: Callable[[Array], Array], numbers: Array, chunk_size: int, axis_name: AxisName | None = None
) -> Array:
    """What a function gives for each of some numbers.

    Args:
      query: of one number.
      numbers: `[count]`; count is static.
      chunk_size: how many are evaluated at once.
      axis_name: the mapped axis whose devices share the work: the i-th of n takes every n-th number from the i-th on,
        so that each has its part of every layer. Only answers are gathered. All must have the same data.

    Returns:
      `[count, ...]`, the same on all devices.
    """
    count = numbers.shape[0]
    if axis_name is None:
        return jax.lax.map(query, numbers, batch_size=min(chunk_size, count))
    devices = axes.size(axis_name)
    each = -(-count // devices)
    # The last round is filled up with the first number.
    dealt = jnp.concatenate([numbers, jnp.broadcast_to(numbers[:1], (each * devices - count,))])
    own = dealt.reshape(each, devices)[:, axes.position(axis_name)]
    found = jax.lax.map(query, own, batch_size=min(chunk_size, each))
    together = jnp.moveaxis(axes.gather(found, axis_name), 0, 1)
    return together.reshape(each * devices, *found.shape[1:])[:count]
