r"""TernGrad: every coordinate is the bucket's largest absolute value, its negative, or zero.

.. math:: Q(v_i) = c \, \mathrm{sign}(v_i) \, b_i, \quad b_i \sim \mathrm{Bernoulli}(|v_i| / c), \quad c = \|v\|_\infty
"""

from functools import partial

import jax.numpy as jnp

from jaxrobust.aggregation.codecs.levels import uniform
from jaxrobust.aggregation.codecs.quantization import Quantized, check_bucket, dequantize, quantize
from jaxrobust.aggregation.codecs.stateless import stateless
from jaxrobust.typing import Array, Codec, Key

_BITS = 2


def ternary(bucket_size: int = 8192, clip: float | None = None) -> Codec:
    r"""Three levels in 2 bits.

    .. math:: E \|Q(v) - v\|^2 = \sum_i |v_i| (c - |v_i|) = c \|v\|_1 - \|v\|_2^2

    Args:
      bucket_size: B, coordinates that share a scale; the last bucket may be shorter.
      clip: values beyond so many standard deviations (of the whole vector, around its mean) are cut off first: 2.5 in
        the paper, which bounds the scale and makes the codec biased. None, as in the published runs of ALQ, keeps it
        unbiased.

    Returns:
      A `Codec` without state.

    Raises:
      ValueError: for a bucket without coordinates or a clip that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codec = ternary(bucket_size=3)
      >>> wire, _ = codec.encode(jax.random.key(0), jnp.array([2.0, 0.0, -2.0]), codec.init(3))
      >>> codec.decode(wire, ()).tolist()
      [2.0, 0.0, -2.0]

    Reference: Wen, Xu, Yan, Wu, Wang, Chen and Li, "TernGrad: Ternary Gradients to Reduce Communication in Distributed
    Deep Learning", https://arxiv.org/abs/1705.07878, 2017 (equations 2 and 9).
    """
    check_bucket(bucket_size)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}")
    levels = uniform(_BITS)

    def encode(key: Key, x: Array) -> Quantized:
        cut = x if clip is None else clipped(x, clip)
        return quantize(key, cut, levels.rounding, bits=_BITS, bucket_size=bucket_size)

    decode = partial(dequantize, values=levels.values, bits=_BITS, bucket_size=bucket_size)
    return stateless(encode, decode, bucket_size)


def clipped(x: Array, deviations: float) -> Array:
    r"""Cut off what is larger than some standard deviations.

    .. math:: \min(|x_i|, c \sigma) \, \mathrm{sign}(x_i), \quad
              \sigma^2 = \frac{1}{d - 1} \sum_i (x_i - \bar{x})^2

    Args:
      x: `[d]`.
      deviations: c.

    Returns:
      `[d]`; a single coordinate has no deviation and stays.

    Example:
      >>> import jax.numpy as jnp
      >>> clipped(jnp.array([1.0, -1.0, 4.0, -4.0]), 1.0).round(2).tolist()
      [1.0, -1.0, 3.369999885559082, -3.369999885559082]
    """
    if x.size < 2:
        return x
    largest = jnp.max(jnp.abs(x))
    unit = x / jnp.where(largest > 0, largest, 1.0)
    limit = deviations * largest * jnp.std(unit, ddof=1)
    return jnp.clip(x, -limit, limit)
