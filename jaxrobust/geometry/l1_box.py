r"""The part of an l1 ball that lies in the box of images: what a projection on the one and then the other misses.

.. math:: \min_\delta \|x + \delta - y\|_2 \quad \text{with} \quad \|\delta\|_1 \le r, \quad 0 \le x + \delta \le 1

Each coordinate of the difference v = y - x shrinks by the same tau and stops at its room u on the side that it goes to:
:math:`\delta_i = \mathrm{sign}(v_i) \min(\max(|v_i| - \tau, 0), u_i)`, with tau = 0 where that fits, and else such that
:math:`\|\delta\|_1 = r`.
"""

import jax
import jax.numpy as jnp

from jaxrobust.geometry.norm import divided, within
from jaxrobust.geometry.p_norms import l1
from jaxrobust.typing import Array


def project_l1_box(clean: Array, image: Array, radius: Array | float) -> Array:
    """Find the nearest image (in the Euclidean norm) of an l1 ball around a clean one and of [0, 1].

    Variables that sit on the wrong side of a trial tau are settled, round by round: no sort, exact after a few rounds.

    Args:
      clean: the ball's center, in [0, 1], ONE example.
      image: of the same shape and dtype.
      radius: of the ball, not negative.

    Returns:
      An image of the ball and the box, of the same shape and dtype. A coordinate that tau takes whole is the clean
      image's to the last bit.

    Raises:
      ValueError: for a negative radius.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> geometry.project_l1_box(jnp.array([0.75, 0.5, 0.5]), jnp.array([1.5, 1.0, 0.625]), 0.5).tolist()
      [1.0, 0.75, 0.5]

    Reference: Croce and Hein, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers",
    https://arxiv.org/abs/2103.01208, 2021 (proposition 2.1); Kiwiel, "Variable Fixing Algorithms for the Continuous
    Quadratic Knapsack Problem", https://doi.org/10.1007/s10957-007-9317-7, 2008 (the algorithm).
    """

    def project(difference: Array, limit: Array | float) -> Array:
        center = clean.astype(difference.dtype)
        room = jnp.where(difference > 0, 1 - center, center)
        shrunk = _fitted(jnp.abs(difference).reshape(-1), room.reshape(-1), jnp.asarray(limit, center.dtype))
        return jnp.sign(difference) * shrunk.reshape(clean.shape)

    return within(l1()._replace(project=project), clean, image, radius)


def _fitted(sizes: Array, room: Array, limit: Array) -> Array:
    """Nearest 0 <= u <= room to the sizes with sum(u) <= limit."""

    def threshold(free: Array, full: Array) -> Array:
        left = limit - jnp.sum(jnp.where(full, room, 0))
        return divided(jnp.sum(jnp.where(free, sizes, 0)) - left, jnp.sum(free.astype(sizes.dtype)))

    def settle(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        free, full, _ = carry
        rest = fixed - jax.lax.stop_gradient(threshold(free, full))
        over = jnp.sum(jnp.where(free, jnp.maximum(rest - room, 0), 0))
        under = jnp.sum(jnp.where(free, jnp.maximum(-rest, 0), 0))
        # More is cut off above than below: tau must fall, so that what is full stays full; and the other way round.
        filled = free & (rest > room) & (over > under)
        emptied = free & (rest < 0) & (under > over)
        return free & ~filled & ~emptied, full | filled, jnp.any(filled | emptied)

    room, fixed = jax.lax.stop_gradient(room), jax.lax.stop_gradient(sizes)
    none = jnp.zeros(sizes.shape, bool)
    free, full, _ = jax.lax.while_loop(lambda carry: carry[2], settle, (~none, none, jnp.bool_(True)))
    cut = jnp.where(free, jnp.clip(sizes - threshold(free, full), 0, room), jnp.where(full, room, 0))
    clipped = jnp.minimum(sizes, room)
    return jnp.where(jnp.sum(clipped) <= limit, clipped, cut)
