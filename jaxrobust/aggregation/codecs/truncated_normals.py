r"""Mixtures of normal distributions cut off outside [-1, 1]: what adaptive codecs know of normalized gradients.

With z = (r - mu) / sigma, phi the standard normal density and Z = Phi((1 - mu) / sigma) - Phi((-1 - mu) / sigma):

.. math:: F(r) = \sum_n \gamma_n F_n(r), \qquad dF_n = \frac{\phi(z)}{Z_n} \, dz \text{ on } [-1, 1]

Integrals over an interval are taken in z, where the interval is mirrored to the side of the positive numbers: a tail is
then a difference of complementary error functions, small and exact. On narrow intervals, where such differences cancel,
Gauss-Legendre quadrature takes their place.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.typing import Array

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_NARROW = 1.5


class TruncatedNormals(NamedTuple):
    """A mixture on [-1, 1].

    Attributes:
      mean: `[components]`, of the normal before it is cut off.
      sigma: `[components]`, positive.
      weight: `[components]`, not negative; used in proportion to their sum.
    """

    mean: Array
    sigma: Array
    weight: Array


class Moments(NamedTuple):
    """Integrals over an interval [a, c].

    Attributes:
      mass: the integral of dF.
      below: of (c - r) dF.
      spread: of (c - r)(r - a) dF, the variance of rounding to the ends.
    """

    mass: Array
    below: Array
    spread: Array


def moments(distribution: TruncatedNormals, low: Array, high: Array) -> Moments:
    r"""Mass, first moment and rounding variance of intervals.

    .. math:: \int_a^c dF, \quad \int_a^c (c - r) \, dF, \quad \int_a^c (c - r)(r - a) \, dF

    Args:
      distribution: F.
      low: a in [-1, 1], of any shape.
      high: c in [a, 1], of the same shape.

    Returns:
      `Moments` of that shape.

    Example:
      >>> import jax.numpy as jnp
      >>> flat = TruncatedNormals(jnp.zeros(1), jnp.full(1, 100.0), jnp.ones(1))
      >>> [round(float(part), 4) for part in moments(flat, jnp.float32(-1.0), jnp.float32(1.0))]
      [1.0, 1.0, 0.6667]

    Reference: Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for
    Data-Parallel SGD", https://arxiv.org/abs/2010.12460, 2020 (section 3.1).
    """
    mean, sigma, share = _components(distribution, low)
    start, end = (low[..., None] - mean) / sigma, (high[..., None] - mean) / sigma
    mass, below, spread = _standard(start, end)
    return Moments(
        jnp.sum(share * mass, axis=-1),
        jnp.sum(share * sigma * below, axis=-1),
        jnp.sum(share * sigma**2 * spread, axis=-1),
    )


def cdf(distribution: TruncatedNormals, r: Array) -> Array:
    """F, the probability of a number below r.

    Args:
      distribution: F.
      r: of any shape.

    Returns:
      Of r's shape, in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> cdf(TruncatedNormals(jnp.zeros(1), jnp.full(1, 0.1), jnp.ones(1)), jnp.array([-2.0, 0.0, 1.0])).tolist()
      [0.0, 0.5, 1.0]
    """
    return moments(distribution, -jnp.ones_like(r), jnp.clip(r, -1.0, 1.0)).mass


def density(distribution: TruncatedNormals, r: Array) -> Array:
    """The derivative of F on [-1, 1].

    Args:
      distribution: F.
      r: of any shape, in [-1, 1].

    Returns:
      Of r's shape.

    Example:
      >>> import jax.numpy as jnp
      >>> flat = TruncatedNormals(jnp.zeros(1), jnp.full(1, 100.0), jnp.ones(1))
      >>> round(float(density(flat, jnp.float32(0.3))), 4)
      0.5
    """
    mean, sigma, share = _components(distribution, r)
    return jnp.sum(share / sigma * _bell((r[..., None] - mean) / sigma), axis=-1)


def quantile(distribution: TruncatedNormals, probability: Array) -> Array:
    """The number below which a given share lies, by bisection.

    Args:
      distribution: F.
      probability: of any shape, in [0, 1].

    Returns:
      Of that shape, in [-1, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> normal = TruncatedNormals(jnp.zeros(1), jnp.full(1, 0.1), jnp.ones(1))
      >>> [round(float(r), 3) for r in quantile(normal, jnp.array([0.5, 0.8413447]))]
      [0.0, 0.1]
    """
    return where_mass(distribution, -jnp.ones_like(probability), jnp.ones_like(probability), probability)


def where_mass(distribution: TruncatedNormals, low: Array, high: Array, mass: Array) -> Array:
    """The x in [low, high] with so much mass between low and x, by bisection; all of one shape."""

    mean, sigma, share = _components(distribution, low)
    start = (low[..., None] - mean) / sigma

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = ends
        middle = (left + right) / 2
        over = jnp.sum(share * _mass(start, (middle[..., None] - mean) / sigma), axis=-1) > mass
        return jnp.where(over, left, middle), jnp.where(over, middle, right)

    left, right = jax.lax.fori_loop(0, jnp.finfo(low.dtype).nmant + 12, halve, (low, high))
    return (left + right) / 2


def fit(r: Array, count: Array | None = None, weight: Array | None = None) -> TruncatedNormals:
    r"""One component for each row, by its mean and unbiased variance.

    .. math:: \mu_n = \frac{1}{B} \sum_i r_i, \quad \sigma_n^2 = \frac{1}{B - 1} \sum_i (r_i - \mu_n)^2

    Args:
      r: `[components, coordinates]` in [-1, 1].
      count: `[components]` how many coordinates of each row count, from the left; all by default.
      weight: `[components]`; equal by default.

    Returns:
      A `TruncatedNormals`; no sigma is below 2^-24.

    Example:
      >>> import jax.numpy as jnp
      >>> found = fit(jnp.array([[0.5, -0.5, 0.0, 1.0]]), count=jnp.array([3]))
      >>> found.mean.tolist(), found.sigma.tolist()
      ([0.0], [0.5])
    """
    rows, size = r.shape
    counts = jnp.full(rows, size) if count is None else count
    used = jnp.arange(size) < counts[:, None]
    number = counts.astype(r.dtype)
    mean = jnp.sum(jnp.where(used, r, 0), axis=1) / jnp.maximum(number, 1)
    squares = jnp.sum(jnp.where(used, (r - mean[:, None]) ** 2, 0), axis=1)
    sigma = jnp.sqrt(squares / jnp.maximum(number - 1, 1))
    return TruncatedNormals(mean, jnp.maximum(sigma, 2.0**-24), jnp.ones_like(mean) if weight is None else weight)


def _components(distribution: TruncatedNormals, like: Array) -> tuple[Array, Array, Array]:
    """Means, deviations, and weights by the mass that was cut off, in the type of what is integrated."""
    mean, sigma, weight = (part.astype(like.dtype) for part in distribution)
    inside = _mass((-1.0 - mean) / sigma, (1.0 - mean) / sigma)
    return mean, sigma, weight / jnp.sum(weight) / inside


def _mass(start: Array, end: Array) -> Array:
    """The integral of the standard normal density from start to end."""
    flip = start + end < 0
    a, c = jnp.where(flip, -end, start), jnp.where(flip, -start, end)
    lower, upper = (0.5 * jax.lax.erfc(jnp.abs(z) * 0.5**0.5) for z in (a, c))
    return jnp.where(a >= 0, lower - upper, 1.0 - lower - upper)


def _standard(start: Array, end: Array) -> tuple[Array, Array, Array]:
    """The integrals of (1, end - z, (end - z)(z - start)) times the standard normal density from start to end."""
    mass, width = _mass(start, end), end - start
    first = _bell(start) - _bell(end)
    spread = (start + end) * first - start * end * mass - (mass + start * _bell(start) - end * _bell(end))
    narrow = width < _NARROW
    half = 0.5 * jnp.where(narrow, width, 0.0)[..., None]
    above = half * (1.0 + jnp.asarray(_NODES, start.dtype))
    below = width[..., None] - above
    terms = half * jnp.asarray(_WEIGHTS, start.dtype) * _bell(start[..., None] + above)
    return (
        jnp.where(narrow, jnp.sum(terms, axis=-1), mass),
        jnp.where(narrow, jnp.sum(below * terms, axis=-1), jnp.maximum(end * mass - first, 0.0)),
        jnp.where(narrow, jnp.sum(below * above * terms, axis=-1), jnp.maximum(spread, 0.0)),
    )


def _bell(z: Array) -> Array:
    return (2 * np.pi) ** -0.5 * jnp.exp(-0.5 * z**2)
