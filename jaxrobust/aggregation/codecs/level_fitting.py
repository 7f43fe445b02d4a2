r"""Levels of least variance for a distribution of normalized coordinates.

.. math:: \Psi(l) = \sum_j \int_{l_j}^{l_{j+1}} (l_{j+1} - r)(r - l_j) \, dF(r), \quad -1 = l_0 < \dots < l_n = 1

ALQ moves one level at a time to the minimum between its neighbors a and c, which is a quantile:

.. math:: \int_a^x dF = \int_a^c \frac{c - r}{c - a} \, dF

AMQ keeps to powers of one number p, and minimizes over it.

Reference: Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for
Data-Parallel SGD", https://arxiv.org/abs/2010.12460, 2020 (sections 3.2 and 3.3).
"""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.codecs.levels import powers
from jaxrobust.aggregation.codecs.truncated_normals import TruncatedNormals, moments, quantile, where_mass
from jaxrobust.aggregation.packing import check_width
from jaxrobust.typing import Array


def expected_variance(levels: Array, distribution: TruncatedNormals) -> Array:
    r"""Variance of rounding a number drawn from a distribution.

    .. math:: \Psi(l) = \sum_j \int_{l_j}^{l_{j+1}} (l_{j+1} - r)(r - l_j) \, dF(r)

    Args:
      levels: `[levels]`, sorted, from -1 to 1.
      distribution: F.

    Returns:
      A scalar of the levels' type.

    Example:
      >>> import jax.numpy as jnp
      >>> flat = TruncatedNormals(jnp.zeros(1), jnp.full(1, 100.0), jnp.ones(1))
      >>> round(float(expected_variance(jnp.array([-1.0, 0.0, 1.0]), flat)), 4)
      0.1667
    """
    return jnp.sum(moments(distribution, levels[:-1], levels[1:]).spread)


def alq_levels(
    distribution: TruncatedNormals,
    bits: int,
    *,
    zero_level: bool = False,
    symmetric: bool = False,
    sweeps: int = 100,
    start: Array | None = None,
) -> Array:
    r"""Levels of least variance, by exact coordinate descent.

    Every other level is moved at once, then those between: neighbors stay fixed while a level moves, so that no sweep
    raises the variance. An interval without mass leaves its level nothing to gain: it moves toward the mass.

    Args:
      distribution: F, of the type that the levels will have.
      bits: b, width of a code, 2 to 8.
      zero_level: 2^b - 1 levels with zero fixed in the middle, or 2^b levels that are all free between -1 and 1.
      symmetric: whether l_{n - j} = -l_j, for the distribution of \|r\| with a random sign.
      sweeps: over all levels.
      start: `[levels]` to start from; by default from quantiles, equal spacing and powers, and the best is taken.

    Returns:
      `[levels]`, sorted, from -1 to 1.

    Raises:
      ValueError: for a width outside 2 to 8.

    Example:
      >>> import jax.numpy as jnp
      >>> normal = TruncatedNormals(jnp.zeros(1), jnp.full(1, 0.1), jnp.ones(1))
      >>> [round(float(level), 3) for level in alq_levels(normal, bits=2, symmetric=True)]
      [-1.0, -0.121, 0.121, 1.0]
    """
    check_width(bits, least=2)
    known = _mirrored(distribution) if symmetric else distribution
    starts = _starts(known, bits, zero_level) if start is None else start[None]
    middle = starts.shape[1] // 2

    def fitted(levels: Array) -> Array:
        if symmetric:
            chain = _descended(known, levels[middle:], sweeps, innermost=not zero_level)
            return jnp.concatenate([-chain[::-1], chain[int(zero_level) :]])
        if zero_level:
            halves = [_descended(known, half, sweeps) for half in (levels[: middle + 1], levels[middle:])]
            return jnp.concatenate([halves[0], halves[1][1:]])
        return _descended(known, levels, sweeps)

    found = jax.vmap(fitted)(starts)
    losses = jax.vmap(lambda levels: expected_variance(levels, distribution))(found)
    return found[jnp.argmin(losses)]


def amq_multiplier(
    distribution: TruncatedNormals, bits: int, *, zero_level: bool = False, candidates: int = 64
) -> Array:
    r"""The number whose powers are levels of least variance.

    .. math:: \min_{0 < p < 1} \Psi(\{\pm p^s, \dots, \pm p, \pm 1\})

    Candidates between 2^-20 and 1, equally spaced in their logarithms, find the valley of the global minimum; bisection
    of the derivative finds its bottom.

    Args:
      distribution: F, of the type that p will have.
      bits: b, width of a code, 2 to 8.
      zero_level: whether zero is a level too.
      candidates: how many.

    Returns:
      p, a scalar.

    Raises:
      ValueError: for a width outside 2 to 8.

    Example:
      >>> import jax.numpy as jnp
      >>> normal = TruncatedNormals(jnp.zeros(1), jnp.full(1, 0.1), jnp.ones(1))
      >>> round(float(amq_multiplier(normal, bits=2)), 2)
      0.12
    """
    check_width(bits, least=2)

    def loss(logarithm: Array) -> Array:
        return expected_variance(jnp.asarray(powers(jnp.exp2(logarithm), bits, zero_level)), distribution)

    grid = -20 * jnp.arange(candidates, 0, -1, dtype=distribution.mean.dtype) / (candidates + 1)
    best = jnp.argmin(jax.vmap(loss)(grid))
    width = 20 / (candidates + 1)
    slope = jax.grad(loss)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        rising = slope(middle) > 0
        return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

    ends = grid[best] - width, jnp.minimum(grid[best] + width, 0.0)
    low, high = jax.lax.fori_loop(0, jnp.finfo(grid.dtype).nmant, halve, ends)
    return jnp.exp2((low + high) / 2)


def _descended(distribution: TruncatedNormals, chain: Array, sweeps: int, innermost: bool = False) -> Array:
    """Levels between fixed ends, after so many sweeps; with `innermost` the first is the mirror image of one below."""
    place = jnp.arange(1, chain.size - 1)

    def half_sweep(turn: Array, chain: Array) -> Array:
        moved = _between(distribution, chain[:-2], chain[2:])
        chain = chain.at[1:-1].set(jnp.where(place % 2 == turn % 2, moved, chain[1:-1]))
        return chain.at[0].set(_around_zero(distribution, chain[1])) if innermost else chain

    return jax.lax.fori_loop(0, 2 * sweeps, half_sweep, chain)


def _between(distribution: TruncatedNormals, low: Array, high: Array) -> Array:
    """The best levels between neighbors, `[levels]`."""
    inside = moments(distribution, low, high)
    width = high - low
    massive = (inside.mass > jnp.finfo(low.dtype).tiny) & (width > 0)
    target = inside.below / jnp.where(width > 0, width, 1)
    ends = -jnp.ones_like(low), jnp.ones_like(low)
    beneath, beyond = moments(distribution, ends[0], low).mass, moments(distribution, high, ends[1]).mass
    toward = jnp.where(beneath > beyond, low + width / 8, high - width / 8)
    return jnp.where(massive, where_mass(distribution, low, high, target), toward)


def _around_zero(distribution: TruncatedNormals, outer: Array) -> Array:
    r"""The best pair -x, x inside a symmetric distribution: 2 x (F(x) - F(0)) = \int_x^outer (outer - r) dF."""

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        x = (low + high) / 2
        over = 2 * x * moments(distribution, jnp.zeros_like(x), x).mass > moments(distribution, x, outer).below
        return jnp.where(over, low, x), jnp.where(over, x, high)

    low, high = jax.lax.fori_loop(0, jnp.finfo(outer.dtype).nmant + 12, halve, (jnp.zeros_like(outer), outer))
    return (low + high) / 2


def _starts(distribution: TruncatedNormals, bits: int, zero_level: bool) -> Array:
    """Quantiles, equal spacing and powers, `[starts, levels]`."""
    count, dtype = 2**bits - zero_level, distribution.mean.dtype
    even = jnp.linspace(-1, 1, count, dtype=dtype)
    starts = [quantile(distribution, (even + 1) / 2), even]
    starts += [powers(jnp.asarray(ratio, dtype), bits, zero_level) for ratio in (0.5, 0.15)]
    rows = jnp.stack(starts).at[:, 0].set(-1).at[:, -1].set(1)
    return rows.at[:, count // 2].set(0) if zero_level else rows


def _mirrored(distribution: TruncatedNormals) -> TruncatedNormals:
    mean, sigma, weight = distribution
    return TruncatedNormals(*(jnp.concatenate(pair) for pair in ((mean, -mean), (sigma, sigma), (weight, weight))))
