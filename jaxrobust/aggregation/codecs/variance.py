r"""The variance of stochastic rounding, for a vector exactly and for all vectors by the theorem.

.. math:: E \|Q(v) - v\|^2 = c^2 \sum_i (l_{j_i + 1} - r_i)(r_i - l_{j_i}) \le \epsilon_Q \|v\|^2

Reference: Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for
Data-Parallel SGD", https://arxiv.org/abs/2010.12460, 2020 (theorem 2).
"""

import jax.numpy as jnp
import numpy as np

from jaxrobust.aggregation.codecs.quantization import check_bucket, norm_exponent, normalized, norms
from jaxrobust.geometry import Geometry, l2
from jaxrobust.typing import Array

_L2 = l2()


def rounding_variance(x: Array, values: np.ndarray | Array, bucket_size: int, norm: Geometry = _L2) -> Array:
    r"""Variance of each coordinate when a vector is sent once.

    .. math:: \mathrm{Var} \, Q(v_i) = c^2 (l_{j + 1} - r_i)(r_i - l_j), \quad l_j \le r_i = v_i / c \le l_{j + 1}

    Args:
      x: `[d]`.
      values: `[levels]`, sorted, from -1 to 1.
      bucket_size: coordinates that share a scale.
      norm: `geometry.l2()` or `geometry.linf()`.

    Returns:
      `[d]`, of x's type. Their sum is the expected squared error.

    Raises:
      ValueError: for a bucket without coordinates or another norm.

    Example:
      >>> import jax.numpy as jnp
      >>> rounding_variance(jnp.array([3.0, 4.0]), jnp.array([-1.0, 0.0, 1.0]), bucket_size=2).tolist()
      [6.0, 4.0]
    """
    check_bucket(bucket_size)
    exponent = norm_exponent(norm)
    buckets = jnp.pad(x, (0, -x.size % bucket_size)).reshape(-1, bucket_size)
    scale = norms(buckets, exponent)
    r, levels = normalized(buckets, scale), jnp.asarray(values, x.dtype)
    place = jnp.clip(jnp.searchsorted(levels, r, side="right") - 1, 0, levels.size - 2)
    spread = (levels[place + 1] - r) * (r - levels[place])
    return (scale[:, None] ** 2 * spread).reshape(-1)[: x.size]


def variance_bound(values: np.ndarray | Array, bucket_size: int) -> float:
    r"""The relative variance that no vector exceeds, for buckets scaled by the Euclidean norm or the maximum.

    .. math:: \epsilon_Q = \frac{(k - 1)^2}{4 k} + \inf_{0 < p < 1} K_p \, l_1^{2 - p} B^{(2 - p) / 2}, \quad
              k = \max_{j \ge 1} \frac{l_{j + 1}}{l_j}, \quad
              K_p = \frac{1}{2 - p} \Big( \frac{1 - p}{2 - p} \Big)^{1 - p}

    Without a zero level, coordinates between the innermost levels -a and c add :math:`B (a + c)^2 / 4` instead.

    Args:
      values: `[levels]`, sorted, from -1 to 1.
      bucket_size: B.

    Returns:
      The bound.

    Raises:
      ValueError: for a bucket without coordinates.

    Example:
      >>> from jaxrobust.aggregation.codecs.levels import exponential
      >>> round(variance_bound(exponential(3).values, 8192), 2)
      21.75

    Reference: Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for
    Data-Parallel SGD", https://arxiv.org/abs/2010.12460, 2020 (theorem 2).
    """
    check_bucket(bucket_size)
    levels = np.asarray(values, np.float64)
    sides = [levels[levels > 0], -levels[levels < 0][::-1]]
    ratio = max((side[1:] / side[:-1]).max(initial=1.0) for side in sides)
    outer = (ratio - 1) ** 2 / (4 * ratio)
    if not np.any(levels == 0):
        return float(outer + bucket_size * (sides[0][0] + sides[1][0]) ** 2 / 4)
    reach = max(side[0] for side in sides) * np.sqrt(bucket_size)
    # The ends are the limits: K_0 = 1/4 and K_1 = 1.
    inside = [_factor(p) * reach ** (2 - p) for p in np.linspace(0, 1, 1001)]
    return float(outer + min(inside))


def _factor(p: float) -> float:
    return ((1 - p) / (2 - p)) ** (1 - p) / (2 - p)
