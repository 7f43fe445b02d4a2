r"""QSGD: stochastic rounding to equally spaced levels, after division by the bucket's Euclidean norm.

A vector is cut into buckets v of B coordinates with scale c = ||v||_2. A coordinate travels as its sign and the level
l_j = j / s of its magnitude r = |v_i| / c, where l_j <= r <= l_{j+1}:

.. math:: Q(v_i) = c \, \mathrm{sign}(v_i) \, \xi_i, \quad
          \xi_i = l_{j+1} \text{ with probability } s (r - l_j), \text{ else } l_j

so that E[Q(v)] = v, and the variance of a coordinate is c^2 (l_{j+1} - r)(r - l_j).

With b bits a code, one bit is the sign and s = 2^(b-1) - 1: zero is a level, as in the paper. Published runs of later
papers round to 2^b levels without zero, at seven times the variance (3 bits, buckets of 8192).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.codecs.stateless import stateless
from jaxrobust.aggregation.packing import check_width, pack, unpack
from jaxrobust.typing import Array, Codec, Key


class Quantized(NamedTuple):
    """A vector on the wire.

    Attributes:
      codes: `[ceil(d * bits / 8)]` uint8, packed.
      scale: `[ceil(d / bucket_size)]` float32, the buckets' norms.
    """

    codes: Array
    scale: Array


def qsgd(bits: int = 4, bucket_size: int = 8192) -> Codec:
    r"""Codes of a few bits, unbiased.

    .. math:: E \|Q(v) - v\|^2 \le \min(B / s^2, \sqrt{B} / s) \, \|v\|^2, \quad s = 2^{b - 1} - 1

    Args:
      bits: b, width of a code with its sign, 2 to 8.
      bucket_size: B, coordinates that share a norm; the last bucket may be shorter. 8192 in the experiments of NUQSGD.

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
      ([0.0, -2.0, 0.0, 0.0], (2,))

    Reference: Alistarh, Grubic, Li, Tomioka and Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization
    and Encoding", https://arxiv.org/abs/1610.02132, 2017 (section 3.1).
    """
    check_width(bits, least=2)
    if bucket_size < 1:
        raise ValueError(f"bucket_size must be positive, got {bucket_size}")
    levels, sign_bit = 2 ** (bits - 1) - 1, bits - 1

    def encode(key: Key, x: Array) -> Quantized:
        buckets = jnp.pad(x, (0, -x.size % bucket_size)).reshape(-1, bucket_size)
        scale = _norms(buckets)
        height = jnp.abs(buckets) / jnp.where(scale > 0, scale, 1.0)[:, None] * levels
        below = jnp.floor(height)
        up = jax.random.uniform(key, height.shape) < height - below
        level = below.astype(jnp.uint8) + up.astype(jnp.uint8)
        codes = level | ((buckets < 0).astype(jnp.uint8) << jnp.uint8(sign_bit))
        return Quantized(pack(codes.reshape(-1)[: x.size], bits), scale)

    def decode(wire: Quantized) -> Array:
        padded = wire.scale.size * bucket_size
        codes = unpack(wire.codes, bits, min(padded, 8 * wire.codes.size // bits))
        level = (codes & jnp.uint8(levels)).astype(jnp.float32) / levels
        sign = 1.0 - 2.0 * (codes >> jnp.uint8(sign_bit)).astype(jnp.float32)
        buckets = jnp.pad(sign * level, (0, padded - codes.size)).reshape(-1, bucket_size)
        return (wire.scale[:, None] * buckets).reshape(-1)[: codes.size]

    return stateless(encode, decode)


def _norms(buckets: Array) -> Array:
    # Squares of numbers below 1e-23 or above 1e19 leave float32's range; divided by the largest they do not.
    largest = jnp.max(jnp.abs(buckets), axis=1)
    unit = buckets / jnp.where(largest > 0, largest, 1.0)[:, None]
    return largest * jnp.sqrt(jnp.sum(unit**2, axis=1))
