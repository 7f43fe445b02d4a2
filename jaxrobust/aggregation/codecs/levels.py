r"""Levels: sorted numbers from -1 to 1, and the stochastic rounding of r in [-1, 1] to one of its two neighbors.

.. math:: Q(r) = l_{j+1} \text{ if } u < \frac{r - l_j}{l_{j+1} - l_j} \text{ else } l_j, \qquad l_j \le r \le l_{j+1}

With u uniform in [0, 1), E[Q(r)] = r and Var Q(r) = (l_{j+1} - r)(r - l_j). A level itself never moves. The code of a
level is its place j. With b bits there are 2^b - 1 levels, zero among them, or 2^b without zero.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxrobust.aggregation.packing import check_width
from jaxrobust.typing import Array

Rounding: TypeAlias = Callable[[Array, Array], Array]
"""`(r, u) -> codes`: numbers in [-1, 1] and draws in [0, 1), both of any one shape, to uint32 codes."""


class Levels(NamedTuple):
    """A vector of levels, and how numbers are rounded to it.

    Attributes:
      values: `[levels]` float32, sorted, from -1 to 1.
      rounding: `(r, u) -> codes`, elementwise; a code is an index into values.
    """

    values: np.ndarray | Array
    rounding: Rounding


def uniform(bits: int, zero_level: bool = True) -> Levels:
    r"""Equally spaced levels.

    .. math:: l_j = -1 + 2 j / (n - 1), \quad j = 0, \dots, n - 1

    Args:
      bits: b, width of a code, 2 to 8.
      zero_level: n = 2^b - 1 levels with zero in the middle, as the paper of QSGD has them, or else n = 2^b.

    Returns:
      The `Levels`.

    Raises:
      ValueError: for a width outside 2 to 8.

    Example:
      >>> uniform(2).values.tolist()
      [-1.0, 0.0, 1.0]
    """
    check_width(bits, least=2)
    count = 2**bits - zero_level
    half, center = (count - 1) / 2, (count - 1) // 2

    def rounding(r: Array, u: Array) -> Array:
        # Zero lies at 0, or at 1/2 between the middle levels: small r keep all of their bits beside it.
        height = r * half if zero_level else r * half + 0.5
        below = jnp.floor(height)
        up = u < height - below
        return ((below + center).astype(jnp.int32) + up.astype(jnp.int32)).astype(jnp.uint32)

    return Levels(np.linspace(-1.0, 1.0, count).astype(np.float32), rounding)


def exponential(bits: int, zero_level: bool = True) -> Levels:
    r"""Powers of one half and their negatives: close to each other near zero, where most coordinates of a gradient lie.

    .. math:: \{0, \pm 2^{-s}, \dots, \pm 1/2, \pm 1\}, \quad s = 2^{b - 1} - 2

    Rounding reads the exponent and the mantissa of a number: the mantissa is how far it lies between two powers.

    Args:
      bits: b, width of a code, 2 to 8.
      zero_level: 2^b - 1 levels with zero, as the paper of NUQSGD has them, or else 2^b without, where s = 2^(b-1) - 1.

    Returns:
      The `Levels`.

    Raises:
      ValueError: for a width outside 2 to 8.

    Example:
      >>> exponential(3).values.tolist()
      [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    """
    values = powers(0.5, bits, zero_level)
    steps, positive = 2 ** (bits - 1) - 1 - zero_level, 2 ** (bits - 1) - 1 + (not zero_level)
    lowest = 127 - steps

    def rounding(r: Array, u: Array) -> Array:
        word = jax.lax.bitcast_convert_type(jnp.abs(r), jnp.uint32)
        between = (
            jax.lax.bitcast_convert_type((word & jnp.uint32(0x7FFFFF)) | jnp.uint32(0x3F800000), jnp.float32) - 1.0
        )
        power = (word >> jnp.uint32(23)).astype(jnp.int32) + (u < between).astype(jnp.int32)
        place = jnp.clip(power - lowest, 0, steps)
        # Two factors, for 2^127 times a small number may be all that float32 can hold.
        inner = jnp.abs(r) * 2.0 ** (steps // 2) * 2.0 ** (steps - steps // 2)
        if zero_level:
            place = jnp.where(inner < 1, (u < inner).astype(jnp.int32), place + 1)
            return jnp.where(r < 0, positive - place, positive + place).astype(jnp.uint32)
        # Between the innermost two, "up" is away from zero.
        away = (inner >= 1) | (u < 0.5 + 0.5 * inner)
        return jnp.where((r < 0) == away, positive - 1 - place, positive + place).astype(jnp.uint32)

    return Levels(values, rounding)


def powers(ratio: Array | float, bits: int, zero_level: bool = True) -> np.ndarray | Array:
    r"""Powers of a number in (0, 1), and their negatives, from -1 to 1.

    .. math:: \{0, \pm p^s, \dots, \pm p, \pm 1\}

    Args:
      ratio: p; an array may be traced.
      bits: b, width of a code, 2 to 8.
      zero_level: 2^b - 1 levels with zero, or 2^b without.

    Returns:
      `[levels]`, sorted, float32 for a number.

    Raises:
      ValueError: for a width outside 2 to 8.

    Example:
      >>> powers(0.25, 2, zero_level=False).tolist()
      [-1.0, -0.25, 0.25, 1.0]
    """
    check_width(bits, least=2)
    xp = np if isinstance(ratio, float) else jnp
    sizes = ratio ** xp.arange(2 ** (bits - 1) - zero_level).astype(xp.asarray(ratio).dtype)
    middle = xp.zeros(int(zero_level), sizes.dtype)
    levels = xp.concatenate([-sizes, middle, sizes[::-1]])
    return levels.astype(np.float32) if isinstance(ratio, float) else levels


def arbitrary(values: np.ndarray | Array) -> Levels:
    r"""Any sorted levels from -1 to 1, traced or not.

    A code is the number of thresholds below r, each of which lies somewhere between two levels:

    .. math:: \#\{ j : r > l_j + u (l_{j+1} - l_j) \}

    Args:
      values: `[levels]`, at most 256.

    Returns:
      The `Levels`. Numbers are compared with every threshold: a search by halving reads tables at places that differ
      from number to number, which takes longer.

    Example:
      >>> import jax.numpy as jnp
      >>> r, u = jnp.array([0.0, 0.2, 0.2]), jnp.array([0.5, 0.7, 0.9])
      >>> arbitrary(jnp.array([-1.0, 0.0, 0.25, 1.0])).rounding(r, u).tolist()
      [1, 2, 1]
    """
    low, gap = jnp.asarray(values)[:-1], jnp.diff(jnp.asarray(values))
    # The levels are arguments: other ones compile nothing anew.
    return Levels(values, Partial(_rounded, low, gap))


TOGETHER = 16
"""Thresholds of one pass over the numbers."""


def _rounded(low: Array, gap: Array, r: Array, u: Array) -> Array:
    if low.size <= TOGETHER:
        return _passed(low, gap, r, u)
    # No number is above infinity: thresholds fill up whole passes.
    missing = -low.size % TOGETHER
    low = jnp.pad(low, (0, missing), constant_values=jnp.inf).reshape(-1, TOGETHER)
    gap = jnp.pad(gap, (0, missing)).reshape(-1, TOGETHER)

    def one_pass(count: Array, thresholds: tuple[Array, Array]) -> tuple[Array, None]:
        return count + _passed(*thresholds, r, u), None

    return jax.lax.scan(one_pass, _passed(low[0], gap[0], r, u), (low[1:], gap[1:]))[0]


def _passed(low: Array, gap: Array, r: Array, u: Array) -> Array:
    """How many thresholds are below r."""
    above = [r > low[place] + u * gap[place] for place in range(low.size)]
    return sum((test.astype(jnp.uint32) for test in above), jnp.zeros(r.shape, jnp.uint32))
