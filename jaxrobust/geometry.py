r"""Norms, seen from everywhere: an attack climbs in one, an optimizer descends in one, a margin is its dual's.

A `Geometry` gives, for a norm :math:`\|\cdot\|` with dual :math:`\|g\|_* = \max_{\|d\| \le 1} \langle g, d\rangle`, the
steepest direction (which attains the dual norm), the Euclidean projection onto a ball, and a uniform draw from the unit
ball. All are written for ONE example of any shape; callers map them over a batch.

The Fourier geometry is the largest modulus of the coefficients of each channel's unitary two-dimensional DFT; its dual
is the sum of the moduli.

Reference: Faghri, Gowal, Vasconcelos, Fleet, Pedregosa and Le Roux, "Bridging the Gap Between Adversarial Robustness
and Optimization Bias", https://arxiv.org/abs/2102.08868, 2021.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
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
      bounds: `(clean, radius) -> (low, high)`, lowest and highest values of the ball around an example, where the ball
        is a box of its own: projecting is then one clip. None for every other norm.
    """

    name: str
    norm: Callable[[Array], Array]
    dual_norm: Callable[[Array], Array]
    steepest: Callable[[Array], Array]
    project: Callable[[Array, Array | float], Array]
    sample: Callable[[Key, Shape], Array]
    bounds: Callable[[Array, Array], tuple[Array, Array]] | None = None


def linf() -> Geometry:
    r"""The largest absolute value; dual :math:`\ell_1`, steepest direction :math:`\mathrm{sign}(g)`.

    Returns:
      The geometry.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> geometry.linf().project(jnp.array([0.75, -0.125]), 0.25).tolist()
      [0.25, -0.125]

    Reference: Boyd and Vandenberghe, "Convex Optimization", section 9.4, https://web.stanford.edu/~boyd/cvxbook, 2004.
    """
    return Geometry(
        name="linf",
        norm=lambda x: jnp.max(jnp.abs(x), initial=0),
        dual_norm=lambda g: jnp.sum(jnp.abs(g)),
        steepest=jnp.sign,
        project=lambda x, radius: jnp.clip(x, -_checked(radius, x), _checked(radius, x)),
        sample=lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),
        bounds=_interval,
    )


def l2() -> Geometry:
    r"""The Euclidean norm, its own dual; steepest direction :math:`g / \|g\|_2`.

    Returns:
      The geometry.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> float(geometry.l2().norm(jnp.array([3.0, 4.0])))
      5.0

    Reference: Boyd and Vandenberghe, "Convex Optimization", section 9.4, https://web.stanford.edu/~boyd/cvxbook, 2004.
    """
    return Geometry(
        name="l2",
        norm=_euclidean,
        dual_norm=_euclidean,
        steepest=lambda g: _divided(g, _euclidean(g)),
        project=lambda x, radius: x * jnp.minimum(1, _divided(_checked(radius, x), _euclidean(x), at_zero=1)),
        sample=lambda key, shape: _sample_lp(2.0, key, shape),
    )


def l1() -> Geometry:
    r"""The sum of absolute values; dual :math:`\ell_\infty`, steepest direction the largest coordinate alone.

    The projection shrinks every size by :math:`\max(0, \max_k (S_k - r) / k)`, with S_k the sum of the k largest.

    Returns:
      The geometry.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> geometry.l1().steepest(jnp.array([1.0, -2.0])).tolist()
      [0.0, -1.0]

    Reference: Duchi, Shalev-Shwartz, Singer and Chandra, "Efficient Projections onto the l1-Ball for Learning in High
    Dimensions", https://icml.cc/Conferences/2008/papers/361.pdf, 2008.
    """

    def steepest(g: Array) -> Array:
        flat = g.reshape(-1)
        largest = jnp.argmax(jnp.abs(flat))
        return jnp.zeros_like(flat).at[largest].set(jnp.sign(flat[largest])).reshape(g.shape)

    def project(x: Array, radius: Array | float) -> Array:
        sizes = jnp.sort(jnp.abs(x).reshape(-1), descending=True)
        excess = jnp.cumsum(sizes) - _checked(radius, x)
        shrink = jnp.max(excess / jnp.arange(1, x.size + 1, dtype=x.dtype), initial=0)
        return jnp.sign(x) * jnp.maximum(jnp.abs(x) - shrink, 0)

    return Geometry(
        name="l1",
        norm=lambda x: jnp.sum(jnp.abs(x)),
        dual_norm=lambda g: jnp.max(jnp.abs(g), initial=0),
        steepest=steepest,
        project=project,
        sample=lambda key, shape: _sample_lp(1.0, key, shape),
    )


def lp(p: float) -> Geometry:
    r"""The p-norm for p in [1, inf]; dual exponent :math:`q = p / (p - 1)`.

    The steepest direction is :math:`\mathrm{sign}(g) |g|^{q-1} / \|g\|_q^{q-1}`. The projection solves
    :math:`u_i + s u_i^{p-1} = |x_i| / r` by bisection in each u, and in s until :math:`\sum_i u_i^p = 1`.

    Args:
      p: exponent, at least 1; 1, 2 and `math.inf` give `l1`, `l2` and `linf`.

    Returns:
      The geometry.

    Raises:
      ValueError: if p is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> round(float(geometry.lp(3.0).norm(jnp.array([1.0, 1.0]))), 4)
      1.2599

    Reference: Barthe, Guédon, Mendelson and Naor, "A probabilistic approach to the geometry of the l_p^n-ball",
    https://arxiv.org/abs/math/0503650, 2005 (the uniform draw).
    """
    if not p >= 1:
        raise ValueError(f"p must be at least 1, got {p}: below 1 there is no norm")
    named = {1: l1, 2: l2, math.inf: linf}
    if p in named:
        return named[p]()
    q = p / (p - 1)

    def steepest(g: Array) -> Array:
        scaled = _divided(g, jnp.max(jnp.abs(g), initial=0))
        raised = jnp.sign(scaled) * jnp.abs(scaled) ** (q - 1)
        return _divided(raised, _power_norm(p, raised))

    return Geometry(
        name=f"l{p:g}",
        norm=lambda x: _power_norm(p, x),
        dual_norm=lambda g: _power_norm(q, g),
        steepest=steepest,
        project=lambda x, radius: _project_lp(p, x, _checked(radius, x)),
        sample=lambda key, shape: _sample_lp(p, key, shape),
    )


def fourier_linf() -> Geometry:
    r"""The largest modulus among the coefficients of each channel's unitary 2-D DFT; dual the sum of the moduli.

    With F the DFT over height and width, :math:`\|x\| = \max_k |(Fx)_k|`. The projection shrinks each modulus to the
    radius and keeps the phase: exact, because F is unitary and the ball a product of disks. The steepest direction is
    :math:`F^{-1}(\hat g / |\hat g|)`. Arrays are `[height, width, channel]`.

    Returns:
      The geometry.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> float(geometry.fourier_linf().norm(jnp.ones((4, 4, 1))))
      4.0

    Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias", section 4,
    https://arxiv.org/abs/2102.08868, 2021.
    """

    def project(x: Array, radius: Array | float) -> Array:
        coefficients = _fourier(x)
        modulus = jnp.abs(coefficients)
        shrink = jnp.minimum(1, _divided(_checked(radius, x), modulus, at_zero=1))
        return _inverse(coefficients * shrink.astype(coefficients.dtype), x)

    def steepest(g: Array) -> Array:
        coefficients = _fourier(g)
        modulus = jnp.abs(coefficients)
        return _inverse(_divided(coefficients, modulus.astype(coefficients.dtype)), g)

    def sample(key: Key, shape: Shape) -> Array:
        # The DFT of white noise is independent and standard normal: real where a coefficient is its own conjugate,
        # complex elsewhere. Its distribution function maps each onto a uniform draw from [-1, 1] or the unit disk, and
        # keeps conjugates conjugate.
        coefficients = _fourier(jax.random.normal(key, shape))
        modulus = jnp.abs(coefficients)
        disk = jnp.sqrt(-jnp.expm1(-(modulus**2)))
        segment = jax.lax.erf(modulus / math.sqrt(2))
        size = jnp.where(_own_conjugate(shape), segment, disk)
        return _inverse(coefficients * _divided(size, modulus).astype(coefficients.dtype), modulus)

    return Geometry(
        name="fourier_linf",
        norm=lambda x: jnp.max(jnp.abs(_fourier(x)), initial=0),
        dual_norm=lambda g: jnp.sum(jnp.abs(_fourier(g))),
        steepest=steepest,
        project=project,
        sample=sample,
    )


def within(geometry: Geometry, clean: Array, image: Array, radius: float) -> Array:
    """Bring an image into the ball around a clean one and into [0, 1], feasible for both.

    Where the ball is a box itself, the image is clipped to what both share. Otherwise the difference is projected on
    the ball and the sum clipped to the box. In the p-norms clipping toward a clean image of the box never raises the
    norm. In the Fourier geometry it can: the difference is then shrunk until it fits, which keeps it in the box,
    because the box is convex and holds the clean image. A sum that rounding carried out of the ball comes back by one
    unit in its last place.

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
    limit = _checked(radius, clean)
    if geometry.bounds is not None:
        low, high = geometry.bounds(clean, limit)
        return jnp.clip(image, jnp.maximum(low, 0), jnp.minimum(high, 1))
    clipped = jnp.clip(clean + geometry.project(image - clean, radius), 0, 1)
    shrink = jnp.minimum(1, _divided(limit, geometry.norm(clipped - clean), at_zero=1))
    inside = jnp.where(shrink < 1, jnp.clip(clean + shrink * (clipped - clean), 0, 1), clipped)
    return jnp.where(geometry.norm(inside - clean) > limit, jnp.nextafter(inside, clean), inside)


def _checked(radius: Array | float, x: Array) -> Array:
    if isinstance(radius, (int, float)) and not radius >= 0:
        raise ValueError(f"radius must be positive, got {radius}")
    return jnp.asarray(radius, x.dtype)


def _interval(clean: Array, radius: Array) -> tuple[Array, Array]:
    """Both ends one unit in the last place inward: rounding may have carried them out, and a compiler that knows
    a + b - a = b lets nothing computed tell."""
    return jnp.nextafter(clean - radius, clean), jnp.nextafter(clean + radius, clean)


def _divided(numerator: Array, denominator: Array, at_zero: float = 0) -> Array:
    """A quotient that is defined where the denominator is 0, in value and in gradient."""
    safe = jnp.where(denominator == 0, jnp.ones_like(denominator), denominator)
    return jnp.where(denominator == 0, jnp.asarray(at_zero, numerator.dtype), numerator / safe)


def _euclidean(x: Array) -> Array:
    return _power_norm(2, x)


def _power_norm(p: float, x: Array) -> Array:
    """The p-norm, scaled by the largest entry so that nothing overflows or vanishes; at 0 its gradient is finite."""
    largest = jnp.max(jnp.abs(x), initial=0)
    total = jnp.sum(jnp.abs(_divided(x, largest)) ** p)
    return largest * jnp.where(largest == 0, jnp.ones_like(total), total) ** (1 / p)


def _sample_lp(p: float, key: Key, shape: Shape) -> Array:
    """Uniform in the unit ball: g / (sum |g|^p + e)^(1/p) with g of density exp(-|g|^p) and e exponential."""
    noise, depth = jax.random.split(key)
    g = jax.random.generalized_normal(noise, p, shape)
    return g / (jnp.sum(jnp.abs(g) ** p) + jax.random.exponential(depth)) ** (1 / p)


def _project_lp(p: float, x: Array, radius: Array) -> Array:
    """Solve in units of the radius: sizes y, result u in [0, 1], multiplier s at most max(y) n^(1 - 1/p)."""
    y = _divided(jnp.abs(x), radius)
    top = jnp.minimum(y, 1)

    def shrunk(multiplier: Array) -> Array:
        return _bisect(lambda u: u + multiplier * u ** (p - 1) > y, jnp.zeros_like(y), top)

    most = jnp.max(y, initial=0) * x.size ** (1 - 1 / p)
    multiplier = _bisect(lambda s: jnp.sum(shrunk(s) ** p) <= 1, jnp.zeros_like(most), most)
    found = shrunk(multiplier)
    found = found / jnp.maximum(1, _power_norm(p, found))
    return jnp.where(_power_norm(p, x) <= radius, x, jnp.sign(x) * radius * found)


def _bisect(above: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where a monotone test turns true, elementwise."""

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        outside = above(middle)
        return jnp.where(outside, low, middle), jnp.where(outside, middle, high)

    # Sixteen halvings beyond the last bit: the multiplier may lie that far below its bound.
    low, high = jax.lax.fori_loop(0, jnp.finfo(low.dtype).nmant + 16, halve, (low, high))
    return (low + high) / 2


def _fourier(x: Array) -> Array:
    return jnp.fft.fft2(x, axes=(0, 1), norm="ortho")


def _inverse(coefficients: Array, like: Array) -> Array:
    return jnp.fft.ifft2(coefficients, axes=(0, 1), norm="ortho").real.astype(like.dtype)


def _own_conjugate(shape: Shape) -> Array:
    """Which frequencies of a real field are their own conjugates: 0 and, for even sides, the highest."""
    rows, columns = ((2 * jnp.arange(side)) % side == 0 for side in shape[:2])
    return (rows[:, None] & columns[None, :]).reshape(*shape[:2], *(1,) * (len(shape) - 2))
