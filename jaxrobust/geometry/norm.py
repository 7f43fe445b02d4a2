r"""The type of a norm, and what all of its members share.

A `Geometry` gives, for a norm :math:`\|\cdot\|` with dual :math:`\|g\|_* = \max_{\|d\| \le 1} \langle g, d\rangle`, the
steepest direction (which attains the dual norm), the Euclidean projection onto a ball, and a uniform draw from the unit
ball. All are written for ONE example of any shape; callers map them over a batch.

Reference: Faghri, Gowal, Vasconcelos, Fleet, Pedregosa and Le Roux, "Bridging the Gap Between Adversarial Robustness
and Optimization Bias", https://arxiv.org/abs/2102.08868, 2021.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust.geometry.dykstra import dykstra
from jaxrobust.precision import at_least_float32
from jaxrobust.typing import Array, Key, Shape

ROUNDS = 5
"""Of alternating projections in an attack's step: twice as many gain another hundredth."""
TRIES, GROWTH = 4, 8
"""At an image that stays in the ball once it is rounded, and how many times more of its excess each takes away."""


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


def within(geometry: Geometry, clean: Array, image: Array, radius: Array | float) -> Array:
    """Bring an image into the ball around a clean one and into [0, 1], feasible for both.

    Where the ball is a box itself, the image is clipped to what both share. In the p-norms the difference is projected
    on the ball and the sum clipped to the box, which never raises the norm, because the clean image lies in the box. In
    the Fourier norms clipping can raise it, and the difference goes through some rounds of `intersect`: attacks are
    stronger for it, most of all on images with many pixels at 0 or 1. In the spectral norm they were measured to gain
    nothing by more than one round.

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
    return intersect(geometry, clean, image, radius, rounds=1 if geometry.transform is None else ROUNDS)


def intersect(geometry: Geometry, clean: Array, image: Array, radius: Array | float, *, rounds: int) -> Array:
    """Project an image on what the ball around a clean one and [0, 1] have in common, by Dykstra's iteration.

    What few rounds leave outside the ball is shrunk toward the clean image until it fits, which keeps it in the box,
    because the box is convex and holds the clean image. What rounding carries out of it again is shrunk by its excess,
    then by 8, 64 and 512 times what is left of it. Norms are computed in 32 bits or more, and an image is in the ball
    as far as they tell. In 16 bits steps between numbers can be longer than a perturbation is in a pixel: of an image
    in small steps everywhere little or nothing may be left, and attacks belong in 32.

    Args:
      geometry: the norm of the ball.
      clean: its center, in [0, 1], ONE example.
      image: of the same shape and dtype.
      radius: of the ball, not negative.
      rounds: of projecting on both, at least 1; the nearest point is reached in the limit, a feasible one always, up
        to the rounding of the norm.

    Returns:
      An image of the ball and the box, of the same shape and dtype.

    Raises:
      ValueError: for a negative radius, or no rounds.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> clean, image = jnp.array([0.0, 0.5]), jnp.array([-1.0, 1.5])
      >>> once, often = (geometry.intersect(geometry.l2(), clean, image, 0.25, rounds=n) for n in (1, 20))
      >>> [round(float(found[1]), 3) for found in (once, often)]
      [0.677, 0.75]

    Reference: Boyle and Dykstra, "A Method for Finding Projections onto the Intersection of Convex Sets in Hilbert
    Spaces", https://doi.org/10.1007/978-1-4613-9940-7_3, 1986.
    """
    dtype, kind = at_least_float32(image.dtype), jnp.finfo(image.dtype)
    center = clean.astype(dtype)
    limit = checked_radius(radius, center)

    def onto_ball(x: Array) -> Array:
        return center + geometry.project(x - center, limit)

    point = dykstra([onto_ball, lambda x: jnp.clip(x, 0, 1)], image.astype(dtype), rounds)

    def shrunk(factor: Array) -> Array:
        moved = jnp.clip(center + factor * (point - center), 0, 1)
        # Compilers may leave a cast to 16 bits and back out: this rounds the same way, and stays.
        kept = jax.lax.reduce_precision(jnp.where(factor < 1, moved, point), kind.nexp, kind.nmant)
        return kept.astype(image.dtype)

    def again(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, times = carry
        excess = divided(geometry.norm(shrunk(factor).astype(dtype) - center), limit) - 1
        return factor * jnp.clip(1 - times * excess, 0, 1), GROWTH * times

    factor = jnp.minimum(1, divided(limit, geometry.norm(point - center), at_zero=1))
    factor, _ = jax.lax.fori_loop(0, TRIES, again, (factor, jnp.ones_like(factor)))
    return shrunk(factor)


def checked_radius(radius: Array | float, x: Array) -> Array:
    """A radius as an array of x's type; a negative Python number is refused."""
    if isinstance(radius, (int, float)) and not radius >= 0:
        raise ValueError(f"radius must not be negative, got {radius}")
    return jnp.asarray(radius, x.dtype)


def divided(numerator: Array, denominator: Array, at_zero: float = 0) -> Array:
    """A quotient that is defined where the denominator is 0, in value and in gradient."""
    safe = jnp.where(denominator == 0, jnp.ones_like(denominator), denominator)
    return jnp.where(denominator == 0, jnp.asarray(at_zero, numerator.dtype), numerator / safe)
