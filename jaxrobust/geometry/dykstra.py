r"""Dykstra's alternating projections: the nearest point of what several convex sets have in common.

.. math:: y = P_i(x + c_i), \quad c_i \leftarrow x + c_i - y, \quad x \leftarrow y

in turn for each set i, whose correction c_i remembers what its last projection took away. Without the corrections the
iteration ends at some common point; with them it tends to the nearest one.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array


def dykstra(projections: Sequence[Callable[[Array], Array]], point: Array, rounds: int) -> Array:
    """Project on the intersection of convex sets, given the projection on each.

    Args:
      projections: `(x) -> the set's nearest point`, of the same shape and dtype.
      point: what is projected, of any shape.
      rounds: through all of the sets, at least 1.

    Returns:
      A point of the last set, of the same shape and dtype; it lies in the others in the limit alone.

    Raises:
      ValueError: if there are no rounds.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> disk = lambda x: geometry.l2().project(x, 1.0)
      >>> right = lambda x: x.at[0].max(0.6)
      >>> geometry.dykstra([disk, right], jnp.array([0.0, 3.0]), 100).round(3).tolist()
      [0.6000000238418579, 0.800000011920929]

    Reference: Boyle and Dykstra, "A Method for Finding Projections onto the Intersection of Convex Sets in Hilbert
    Spaces", https://doi.org/10.1007/978-1-4613-9940-7_3, 1986.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")

    def once(_: int, carry: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        x, corrections = carry
        left = []
        for project, correction in zip(projections, corrections, strict=True):
            moved = x + correction
            x = project(moved)
            left.append(moved - x)
        return x, left

    found, _ = jax.lax.fori_loop(0, rounds, once, (point, [jnp.zeros_like(point)] * len(projections)))
    return found
