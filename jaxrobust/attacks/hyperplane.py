r"""The shortest way from a point of the box to a hyperplane, without leaving the box: what FAB projects with.

.. math:: \min \|\delta\| \quad \text{such that} \quad \langle w, \delta\rangle = -c, \quad x + \delta \in [0, 1]^n

with w the normal and c the gap, how far x lies on the positive side. Each coordinate moves toward its helpful end of
the box, by m_i of the room r_i that it has there, so that :math:`\sum_i |w_i| m_i = |c|`:

- l-infinity: :math:`m_i = \min(\lambda, r_i)`;
- l2: :math:`m_i = \min(\lambda |w_i|, r_i)`;
- l1: all the room of the coordinates with the largest :math:`|w_i|`, and a part of the last one's.

Where the box does not reach the hyperplane, every coordinate with a weight takes all its room: the corner. Nothing is
sorted: XLA's sorts were measured fifty times slower on a CPU.

Reference: Croce and Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
https://arxiv.org/abs/1907.02044, 2020 (section 2.2).
"""

import jax
import jax.numpy as jnp

from jaxrobust.geometry.norm import divided
from jaxrobust.typing import Array


def linf(point: Array, normal: Array, gap: Array) -> Array:
    """The displacement of smallest largest entry.

    Args:
      point: in [0, 1], ONE example of any shape.
      normal: of the same shape and dtype.
      gap: scalar <normal, point> minus the hyperplane's offset.

    Returns:
      The displacement, of the point's shape; to the corner where the hyperplane misses the box.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.attacks import hyperplane
      >>> hyperplane.linf(jnp.array([0.75, 0.25]), jnp.array([1.0, 1.0]), jnp.array(0.75)).tolist()
      [-0.5, -0.25]
    """
    return _in_step(point, normal, gap, jnp.ones_like(normal))


def l2(point: Array, normal: Array, gap: Array) -> Array:
    """The displacement of smallest Euclidean length; entries of the normal below 1e-8 count as zero.

    Args:
      point: in [0, 1], ONE example of any shape.
      normal: of the same shape and dtype.
      gap: scalar <normal, point> minus the hyperplane's offset.

    Returns:
      The displacement, of the point's shape; to the corner where the hyperplane misses the box.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.attacks import hyperplane
      >>> hyperplane.l2(jnp.array([1.0, 1.0]), jnp.array([0.5, 1.0]), jnp.array(0.625)).tolist()
      [-0.25, -0.5]
    """
    normal = jnp.where(jnp.abs(normal) < 1e-8, jnp.zeros_like(normal), normal)
    return _in_step(point, normal, gap, jnp.abs(normal))


def l1(point: Array, normal: Array, gap: Array) -> Array:
    """The displacement of smallest sum of sizes; equal weights share in proportion to their room.

    Args:
      point: in [0, 1], ONE example of any shape.
      normal: of the same shape and dtype.
      gap: scalar <normal, point> minus the hyperplane's offset.

    Returns:
      The displacement, of the point's shape; to the corner where the hyperplane misses the box.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.attacks import hyperplane
      >>> hyperplane.l1(jnp.array([0.5, 0.5]), jnp.array([1.0, -2.0]), jnp.array(1.25)).tolist()
      [-0.25, 0.5]
    """
    weights, room, toward, needed = _toward(point, normal, gap)
    # Sizes are ordered as their bits are, so bisection over bits ends at one of the weights.
    bits = jax.lax.bitcast_convert_type(weights, f"uint{jnp.finfo(weights.dtype).bits}")

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(bits >= middle, weights * room, 0)) >= needed
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    ends = (jnp.zeros_like(bits, shape=()), jnp.max(bits, initial=0) + 1)
    last, _ = jax.lax.fori_loop(0, jnp.finfo(weights.dtype).bits, halve, ends)
    full, part = bits > last, bits == last
    rest = needed - jnp.sum(jnp.where(full, weights * room, 0))
    share = jnp.clip(divided(rest, jnp.sum(jnp.where(part, weights * room, 0))), 0, 1)
    return toward * jnp.where(full, room, jnp.where(part, share * room, 0))


def _toward(point: Array, normal: Array, gap: Array) -> tuple[Array, Array, Array, Array]:
    """Sizes of the weights, the room on each one's helpful side, that side's sign, and the sum to be reached."""
    toward = -jnp.sign(normal) * jnp.where(gap < 0, -jnp.ones_like(gap), jnp.ones_like(gap))
    room = jnp.where(toward > 0, 1 - point, jnp.where(toward < 0, point, 0))
    return jnp.abs(normal), room, toward, jnp.abs(gap)


def _in_step(point: Array, normal: Array, gap: Array, pace: Array) -> Array:
    """Every coordinate moves by min(multiplier * pace, room): Newton's method for the multiplier.

    The sum that is to be reached is concave in the multiplier. From below, a step never passes the root and coordinates
    only ever run out of room: it ends, exactly.
    """
    weights, room, toward, needed = _toward(point, normal, gap)

    def root(free: Array) -> Array:
        rest = needed - jnp.sum(jnp.where(free, 0, weights * room))
        return jnp.maximum(divided(rest, jnp.sum(jnp.where(free, weights * pace, 0))), 0)

    def newton(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        free, _ = carry
        fewer = free & (room > root(free) * pace)
        return fewer, jnp.any(fewer != free)

    free = (weights * room > 0) & (needed < jnp.sum(weights * room))
    free, _ = jax.lax.while_loop(lambda carry: carry[1], newton, (free, jnp.bool_(True)))
    return toward * jnp.where(free, root(free) * pace, room)
