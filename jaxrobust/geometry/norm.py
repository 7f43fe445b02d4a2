r"""The type of a norm, and what all of its members share.

A `Geometry` gives, for a norm :math:`\|\cdot\|` with dual :math:`\|g\|_* = \max_{\|d\| \le 1} \langle g, d\rangle`, the
steepest direction (which attains the dual norm), the Euclidean projection onto a ball, and a uniform draw from the unit
ball. All are written for ONE example of any shape; callers map them over a batch.

Reference: Faghri, Gowal, Vasconcelos, Fleet, Pedregosa and Le Roux, "Bridging the Gap Between Adversarial Robustness
and Optimization Bias", https://arxiv.org/abs/2102.08868, 2021.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxrobust.typing import Array, Key, Shape


class Geometry(NamedTuple):
    """A norm and what follows from it, for one example of any shape.

    Attributes:
      name: for people.
      norm: `(x) -> scalar`.
      dual_norm: `(g) -> scalar`, the largest <g, d> over norm(d) <= 1.
      steepest: `(g) -> d` with norm(d) = 1 and <g, d> = dual_norm(g); 0 at g = 0.
      project: `(x, radius) -> nearest point (in the Euclidean norm) of the ball of that radius around 0`; a negative
        Python number is refused.
      sample: `(key, shape) -> x`, uniform in the unit ball; of JAX's default float type.
      dual: `() -> Geometry` of the dual norm; None where the library has none.
      exponent: p, where norm(x) is the p-norm of the moduli of `transform(x)`; None for a norm of another kind.
      transform: the linear map before that p-norm, to an array of any shape, real or complex; None for the identity.
      shaped: whether the norm looks at an example's shape, so that ravelling changes it.
      bounds: `(clean, radius) -> (low, high)`, lowest and highest values of the ball around an example, where the ball
        is a box of its own: projecting is then one clip. None for every other norm.
    """

    name: str
    norm: Callable[[Array], Array]
    dual_norm: Callable[[Array], Array]
    steepest: Callable[[Array], Array]
    project: Callable[[Array, Array | float], Array]
    sample: Callable[[Key, Shape], Array]
    dual: "Callable[[], Geometry] | None" = None
    exponent: float | None = None
    transform: Callable[[Array], Array] | None = None
    shaped: bool = False
    bounds: Callable[[Array, Array], tuple[Array, Array]] | None = None


def within(geometry: Geometry, clean: Array, image: Array, radius: float) -> Array:
    """Bring an image into the ball around a clean one and into [0, 1], feasible for both.

    Where the ball is a box itself, the image is clipped to what both share. Otherwise the difference is projected on
    the ball and the sum clipped to the box. In the p-norms clipping toward a clean image of the box never raises the
    norm. In the Fourier and spectral norms it can: the difference is then shrunk until it fits, which keeps it in the
    box, because the box is convex and holds the clean image. A sum that rounding carried out of the ball comes back by
    one unit in its last place.

    Args:
      geometry: the norm of the ball.
      clean: its center, in [0, 1], ONE example.
      image: of the same shape and dtype.
      radius: of the ball, not negative.

    Returns:
      An image of the ball and the box, of the same shape and dtype.

    Raises:
      ValueError: for a negative radius.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> geometry.within(geometry.linf(), jnp.array([0.0, 0.5]), jnp.array([-1.0, 0.625]), 0.25).tolist()
      [0.0, 0.625]
    """
    limit = checked_radius(radius, clean)
    if geometry.bounds is not None:
        low, high = geometry.bounds(clean, limit)
        return jnp.clip(image, jnp.maximum(low, 0), jnp.minimum(high, 1))
    clipped = jnp.clip(clean + geometry.project(image - clean, radius), 0, 1)
    shrink = jnp.minimum(1, divided(limit, geometry.norm(clipped - clean), at_zero=1))
    inside = jnp.where(shrink < 1, jnp.clip(clean + shrink * (clipped - clean), 0, 1), clipped)
    return jnp.where(geometry.norm(inside - clean) > limit, jnp.nextafter(inside, clean), inside)


def checked_radius(radius: Array | float, x: Array) -> Array:
    """A radius as an array of x's type; a negative Python number is refused."""
    if isinstance(radius, (int, float)) and not radius >= 0:
        raise ValueError(f"radius must be positive, got {radius}")
    return jnp.asarray(radius, x.dtype)


def divided(numerator: Array, denominator: Array, at_zero: float = 0) -> Array:
    """A quotient that is defined where the denominator is 0, in value and in gradient."""
    safe = jnp.where(denominator == 0, jnp.ones_like(denominator), denominator)
    return jnp.where(denominator == 0, jnp.asarray(at_zero, numerator.dtype), numerator / safe)
