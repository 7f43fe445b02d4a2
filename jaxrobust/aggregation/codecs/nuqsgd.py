r"""NUQSGD: stochastic rounding to powers of one half, which lie densely where most coordinates do.

.. math:: Q(v_i) = c \, l_{h(v_i / c)}, \quad c = \|v\|_q, \quad l \in \{0, \pm 2^{-s}, \dots, \pm 1/2, \pm 1\}
"""

from functools import partial

from jaxrobust.aggregation.codecs.levels import exponential
from jaxrobust.aggregation.codecs.quantization import check_bucket, dequantize, norm_exponent, quantize
from jaxrobust.aggregation.codecs.stateless import stateless
from jaxrobust.geometry import Geometry, l2
from jaxrobust.typing import Codec

_L2 = l2()


def nuqsgd(bits: int = 4, bucket_size: int = 8192, zero_level: bool = True, norm: Geometry = _L2) -> Codec:
    r"""Exponentially spaced levels, unbiased.

    .. math:: E \|Q(v) - v\|^2 \le \Big( \frac{1}{8} + \min(2^{-s} \sqrt{B}, \, 2^{-2 s - 2} B) \Big) \|v\|^2,
              \quad s = 2^{b - 1} - 2

    Args:
      bits: b, width of a code with its sign, 2 to 8; 4 in the experiments of the paper.
      bucket_size: B, coordinates that share a norm; the last bucket may be shorter. 8192 in the paper.
      zero_level: whether zero is one of 2^b - 1 levels, as in the paper. False takes 2^b levels without zero: it
        reproduces published figures (the collapse at 3 bits and buckets of 8192), whose code had none. The bound does
        not hold then.
      norm: what scales a bucket, `geometry.l2()` as published, or `geometry.linf()`, which no published figure uses: at
        few bits its variance is far smaller, and on Gaussian buckets below that of `qsgd_inf` too.

    Returns:
      A `Codec` without state. A bucket of zeros comes back as zeros; one with a value that is not finite comes back not
      finite as a whole.

    Raises:
      ValueError: for a width outside 2 to 8, a bucket without coordinates, or another norm.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> codec = nuqsgd(bits=3, bucket_size=4, norm=geometry.linf())
      >>> wire, _ = codec.encode(jax.random.key(0), jnp.array([0.0, -2.0, 0.5, 1.0]), codec.init(4))
      >>> codec.decode(wire, ()).tolist()
      [0.0, -2.0, 0.5, 1.0]

    Reference: Ramezani-Kebrya, Faghri, Markov, Aksenov, Alistarh and Roy, "NUQSGD: Provably Communication-efficient
    Data-parallel SGD via Nonuniform Quantization", https://arxiv.org/abs/1908.06077, 2021 (section 3).
    """
    levels, exponent = exponential(bits, zero_level), norm_exponent(norm)
    check_bucket(bucket_size)
    return stateless(
        encode=partial(quantize, rounding=levels.rounding, bits=bits, bucket_size=bucket_size, exponent=exponent),
        decode=partial(dequantize, values=levels.values, bits=bits, bucket_size=bucket_size),
        bucket_size=bucket_size,
    )
