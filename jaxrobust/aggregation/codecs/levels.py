r"""Levels: sorted numbers from -1 to 1, and the stochastic rounding of r in [-1, 1] to one of its two neighbors.

.. math:: Q(r) = l_{j+1} \text{ if } u < \frac{r - l_j}{l_{j+1} - l_j} \text{ else } l_j, \qquad l_j \le r \le l_{j+1}

With u uniform in [0, 1), E[Q(r)] = r and Var Q(r) = (l_{j+1} - r)(r - l_j). A level itself never moves. The code of a
level is its place j. With b bits there are 2^b - 1 levels, zero among them, or 2^b without zero.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

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
