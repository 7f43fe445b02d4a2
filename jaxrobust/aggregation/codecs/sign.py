r"""Signs alone, one bit a coordinate: the scaled sign of EF-SignSGD, biased and meant inside `error_feedback`.

.. math:: Q(v_i) = \frac{\|v\|_1}{B} \, \mathrm{sign}(v_i), \quad \mathrm{sign}(0) = 1
"""

import jax.numpy as jnp

from jaxrobust.aggregation.codecs.quantization import Quantized, bucketed, check_bucket, dequantize
from jaxrobust.aggregation.codecs.stateless import stateless
from jaxrobust.aggregation.packing import pack
from jaxrobust.typing import Array, Codec, Key


def sign(bucket_size: int = 8192) -> Codec:
    r"""The sign of each coordinate, times the mean absolute value of its bucket.

    .. math:: \|Q(v) - v\|^2 = \Big( 1 - \frac{\|v\|_1^2}{B \|v\|_2^2} \Big) \|v\|^2

    Args:
      bucket_size: B, coordinates that share a scale; the last bucket may be shorter. The paper scales each layer.

    Returns:
      A `Codec` without state, which draws nothing and is biased: wrap it in `error_feedback`.

    Raises:
      ValueError: for a bucket without coordinates.

    Example:
      >>> import jax.numpy as jnp
      >>> codec = sign(bucket_size=2)
      >>> wire, _ = codec.encode(None, jnp.array([1.0, -3.0, 0.0]), codec.init(3))
      >>> codec.decode(wire, ()).tolist()
      [2.0, -2.0, 0.0, 0.0]

    Reference: Karimireddy, Rebjock, Stich and Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
    Schemes", https://arxiv.org/abs/1901.09847, 2019 (section 3).
    """
    check_bucket(bucket_size)

    def encode(key: Key, x: Array) -> Quantized:
        del key
        sizes = jnp.abs(bucketed(x, bucket_size))
        largest = jnp.max(sizes, axis=1)
        unit = sizes / jnp.where(largest > 0, largest, 1.0)[:, None]
        filled = jnp.minimum(bucket_size, x.size - jnp.arange(largest.size) * bucket_size)
        codes = (bucketed(x, bucket_size) >= 0).astype(jnp.uint8)
        return Quantized(pack(codes, 1), largest * (jnp.sum(unit, axis=1) / filled.astype(jnp.float32)))

    def decode(wire: Quantized) -> Array:
        return dequantize(wire, jnp.array([-1.0, 1.0], jnp.float32), bits=1, bucket_size=bucket_size)

    return stateless(encode, decode, bucket_size)
