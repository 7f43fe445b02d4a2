"""The p-norms: the largest value, the Euclidean length, the sum of absolute values, and everything between."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrobust.geometry.norm import Geometry, checked_radius, divided
from jaxrobust.typing import Array, Key, Shape


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
        project=lambda x, radius: jnp.clip(x, -checked_radius(radius, x), checked_radius(radius, x)),
        sample=lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),
        dual=l1,
        exponent=math.inf,
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
        steepest=lambda g: divided(g, _euclidean(g)),
        project=lambda x, radius: x * jnp.minimum(1, divided(checked_radius(radius, x), _euclidean(x), at_zero=1)),
        sample=lambda key, shape: _sample_lp(2.0, key, shape),
        dual=l2,
        exponent=2,
    )


def l1() -> Geometry:
    r"""The sum of absolute values; dual :math:`\ell_\infty`, steepest direction the largest coordinate alone.

    The projection shrinks every size by the same length, as far as it goes, until their sum is the radius.

    Returns:
      The geometry.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> geometry.l1().steepest(jnp.array([1.0, -2.0])).tolist()
      [0.0, -1.0]

    Reference: Condat, "Fast Projection onto the Simplex and the l1 Ball", Mathematical Programming 158,
    https://doi.org/10.1007/s10107-015-0946-6, 2016 (section 2, Newton's method).
    """

    def steepest(g: Array) -> Array:
        flat = g.reshape(-1)
        largest = jnp.argmax(jnp.abs(flat))
        return jnp.zeros_like(flat).at[largest].set(jnp.sign(flat[largest])).reshape(g.shape)

    def project(x: Array, radius: Array | float) -> Array:
        sizes = jnp.abs(x)
        return jnp.sign(x) * jnp.maximum(sizes - soft_threshold(sizes, radius), 0)

    return Geometry(
        name="l1",
        norm=lambda x: jnp.sum(jnp.abs(x)),
        dual_norm=lambda g: jnp.max(jnp.abs(g), initial=0),
        steepest=steepest,
        project=project,
        sample=lambda key, shape: _sample_lp(1.0, key, shape),
        dual=linf,
        exponent=1,
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
        scaled = divided(g, jnp.max(jnp.abs(g), initial=0))
        raised = jnp.sign(scaled) * jnp.abs(scaled) ** (q - 1)
        return divided(raised, _power_norm(p, raised))

    return Geometry(
        name=f"l{p:g}",
        norm=lambda x: _power_norm(p, x),
        dual_norm=lambda g: _power_norm(q, g),
        steepest=steepest,
        project=lambda x, radius: _project_lp(p, x, checked_radius(radius, x)),
        sample=lambda key, shape: _sample_lp(p, key, shape),
        dual=lambda: lp(q),
        exponent=p,
    )


def soft_threshold(sizes: Array, radius: Array | float, weights: Array | None = None) -> Array:
    r"""How far to shrink sizes so that they fit into a (weighted) l1 ball.

    The nearest :math:`u \ge 0` with :math:`\sum_i w_i u_i \le r` is :math:`u_i = \max(0, y_i - \tau w_i)`; tau is 0, or
    the root of :math:`\sum_i w_i \max(0, y_i - \tau w_i) = r`, convex and falling in tau.

    Args:
      sizes: y, not negative, of any shape.
      radius: r, not negative.
      weights: w, positive, of the same shape; 1 by default.

    Returns:
      The scalar tau.
    """
    y = sizes.reshape(-1)
    limit = checked_radius(radius, sizes)
    w = jnp.ones_like(y) if weights is None else weights.reshape(-1)

    def root(y: Array, chosen: Array) -> Array:
        return divided(jnp.sum(jnp.where(chosen, w * y, 0)) - limit, jnp.sum(jnp.where(chosen, w * w, 0)))

    def newton(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, _ = carry
        fewer = chosen & (fixed > root(fixed, chosen) * w)
        # Of radius 0, or of rounding, the largest remains.
        fewer = jnp.where(jnp.any(fewer), fewer, chosen)
        return fewer, jnp.any(fewer != chosen)

    # From below, a Newton step never passes the root and only ever leaves sizes out: it ends, exactly, without a sort.
    fixed = jax.lax.stop_gradient(y)
    chosen, _ = jax.lax.while_loop(lambda carry: carry[1], newton, (fixed > 0, jnp.bool_(True)))
    return jnp.maximum(root(y, chosen), 0)


def _interval(clean: Array, radius: Array) -> tuple[Array, Array]:
    """Both ends one unit in the last place inward: rounding may have carried them out, and a compiler that knows
    a + b - a = b lets nothing computed tell."""
    return jnp.nextafter(clean - radius, clean), jnp.nextafter(clean + radius, clean)


def _euclidean(x: Array) -> Array:
    return _power_norm(2, x)


def _power_norm(p: float, x: Array) -> Array:
    """The p-norm, scaled by the largest entry so that nothing overflows or vanishes; at 0 its gradient is finite."""
    largest = jnp.max(jnp.abs(x), initial=0)
    total = jnp.sum(jnp.abs(divided(x, largest)) ** p)
    return largest * jnp.where(largest == 0, jnp.ones_like(total), total) ** (1 / p)


def _sample_lp(p: float, key: Key, shape: Shape) -> Array:
    """Uniform in the unit ball: g / (sum |g|^p + e)^(1/p) with g of density exp(-|g|^p) and e exponential."""
    noise, depth = jax.random.split(key)
    g = jax.random.generalized_normal(noise, p, shape)
    return g / (jnp.sum(jnp.abs(g) ** p) + jax.random.exponential(depth)) ** (1 / p)


def _project_lp(p: float, x: Array, radius: Array) -> Array:
    """Solve in units of the radius: sizes y, result u in [0, 1], multiplier s at most max(y) n^(1 - 1/p)."""
    y = divided(jnp.abs(x), radius)
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
