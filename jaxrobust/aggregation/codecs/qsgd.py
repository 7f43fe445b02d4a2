r"""QSGD: stochastic rounding to equally spaced levels, after division by the bucket's norm.

.. math:: Q(v_i) = c \, l_{h(v_i / c)}, \quad c = \|v\|_q, \quad l_j = j / s, \quad j = -s, \dots, s

q is 2 as published (`qsgd`), or infinity, which most implementations use (`qsgd_inf`); `quantization` holds the common
form.
"""

import math
from functools import partial

from jaxrobust.aggregation.codecs.levels import uniform
from jaxrobust.aggregation.codecs.quantization import check_bucket, dequantize, quantize
from jaxrobust.aggregation.codecs.stateless import stateless
from jaxrobust.typing import Codec


def qsgd(bits: int = 4, bucket_size: int = 8192, zero_level: bool = True) -> Codec:
    r"""Equally spaced levels, scaled by the Euclidean norm.

    .. math:: E \|Q(v) - v\|^2 \le \min(B / s^2, \sqrt{B} / s) \, \|v\|^2, \quad s = 2^{b - 1} - 1

    Args:
      bits: b, width of a code with its sign, 2 to 8.
      bucket_size: B, coordinates that share a norm; the last bucket may be shorter. 8192 in the experiments of NUQSGD.
      zero_level: whether zero is one of 2^b - 1 levels, as in the paper. False rounds to 2^b levels without zero, which
        reproduces the figures that the papers of NUQSGD and ALQ publish for it, at seven times the variance (3 bits,
        buckets of 8192); the bound does not hold then.

    Returns:
      A `Codec` without state. A bucket of zeros comes back as zeros; one with a value that is not finite comes back not
      finite as a whole.

    Raises:
      ValueError: for a width outside 2 to 8 or a bucket without coordinates.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codec = qsgd(bits=3, bucket_size=4)
      >>> wire, _ = codec.encode(jax.random.key(0), jnp.array([0.0, -2.0, 0.0, 0.0]), codec.init(4))
      >>> codec.decode(wire, ()).tolist(), wire.codes.shape
      ([0.0, -2.0, 0.0, 0.0], (1, 3))

    Reference: Alistarh, Grubic, Li, Tomioka and Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization
    and Encoding", https://arxiv.org/abs/1610.02132, 2017 (section 3.1).
    """
    return _qsgd(bits, bucket_size, zero_level, 2)


def qsgd_inf(bits: int = 4, bucket_size: int = 8192, zero_level: bool = True) -> Codec:
    r"""Equally spaced levels, scaled by the largest absolute value.

    .. math:: E \|Q(v) - v\|^2 \le \frac{B}{4 s^2} \|v\|_\infty^2, \quad s = 2^{b - 1} - 1

    Args:
      bits: b, width of a code with its sign, 2 to 8.
      bucket_size: B, coordinates that share a scale; the last bucket may be shorter. 8192 in the experiments of ALQ.
      zero_level: whether zero is one of 2^b - 1 levels. False rounds to 2^b levels without zero, as in published runs.

    Returns:
      A `Codec` without state. A bucket of zeros comes back as zeros; one with a value that is not finite comes back not
      finite as a whole.

    Raises:
      ValueError: for a width outside 2 to 8 or a bucket without coordinates.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codec = qsgd_inf(bits=2, bucket_size=4)
      >>> wire, _ = codec.encode(jax.random.key(0), jnp.array([0.0, -2.0, 2.0, 0.0]), codec.init(4))
      >>> codec.decode(wire, ()).tolist()
      [0.0, -2.0, 2.0, 0.0]

    Reference: Alistarh, Grubic, Li, Tomioka and Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization
    and Encoding", https://arxiv.org/abs/1610.02132, 2017 (section 4, scaling by the maximum).
    """
    return _qsgd(bits, bucket_size, zero_level, math.inf)


def _qsgd(bits: int, bucket_size: int, zero_level: bool, exponent: float) -> Codec:
    levels = uniform(bits, zero_level)
    check_bucket(bucket_size)
    return stateless(
        encode=partial(quantize, rounding=levels.rounding, bits=bits, bucket_size=bucket_size, exponent=exponent),
        decode=partial(dequantize, values=levels.values, bits=bits, bucket_size=bucket_size),
        bucket_size=bucket_size,
    )
