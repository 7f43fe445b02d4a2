r"""Quantization in buckets: a scale for each, and a code of a few bits for each coordinate.

A vector is cut into buckets v of B coordinates, the last one filled up with zeros, with scale c = ||v||_q. Each r_i =
v_i / c in [-1, 1] is rounded to a level at random and travels as its code:

.. math:: Q(v_i) = c \, l_{h(v_i / c)}, \quad E[Q(v)] = v, \quad
          E \|Q(v) - v\|^2 = c^2 \sum_i (l_{j_i + 1} - r_i)(r_i - l_{j_i})

A bucket of zeros has c = 0 and comes back as zeros, whatever its levels. One with a value that is not finite, or with a
norm beyond float32, comes back not finite as a whole.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxrobust.aggregation.codecs.draws import uniform_lanes
from jaxrobust.aggregation.codecs.levels import Rounding
from jaxrobust.aggregation.packing import join, pack, split, unpack
from jaxrobust.geometry import Geometry
from jaxrobust.typing import Array, Key

# Coordinates that are rounded at a time where there are more than LONG; up to SHORT, filling up costs nothing.
BLOCK, LONG, SHORT = 2**24, 2**26, 2**16


class Quantized(NamedTuple):
    """A vector on the wire.

    Attributes:
      codes: `[buckets, packed_size(bucket_size, bits)]` uint8.
      scale: `[buckets]` float32, the buckets' norms.
    """

    codes: Array
    scale: Array


def quantize(
    key: Key, x: Array, rounding: Rounding, *, bits: int, bucket_size: int, exponent: float = math.inf
) -> Quantized:
    """Round a vector, bucket by bucket.

    Args:
      key: the same key and vector give the same codes.
      x: `[d]`.
      rounding: numbers in [-1, 1] and draws to codes.
      bits: width of a code, 1 to 8.
      bucket_size: B, coordinates that share a scale.
      exponent: q of the norm that scales, 2 or `math.inf`.

    Returns:
      A `Quantized`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.aggregation.codecs.levels import uniform
      >>> x = jnp.array([0.5, -2.0, 0.0])
      >>> quantize(jax.random.key(0), x, uniform(2).rounding, bits=2, bucket_size=2).scale.tolist()
      [2.0, 0.0]
    """
    # A very long vector goes block by block: between it and its codes lie some copies of a block alone. The ragged end
    # goes by itself: padding all of a long vector costs more than rounding it.
    every, block = -(-x.size // bucket_size), max(1, BLOCK // bucket_size)
    whole = every if x.size <= SHORT else x.size // bucket_size
    blocks = whole // block if whole > LONG // bucket_size else 0
    parts = [
        (first, x[first * bucket_size : last * bucket_size])
        for first, last in ((blocks * block, whole), (whole, every))
    ]
    lane = rounding if isinstance(rounding, Partial) else Partial(rounding)

    def rounded(first: int | Array, part: Array) -> Quantized:
        buckets = bucketed(part, bucket_size)
        scale = norms(buckets, exponent)
        lanes = split(normalized(buckets, scale), 8)
        draws = uniform_lanes(key, *lanes[0].shape, first=first)
        codes = join([_rounded_lane(lane, r, u) for r, u in zip(lanes, draws, strict=True)], bucket_size)
        return Quantized(pack(codes, bits), scale)

    def rounded_block(number: Array) -> Quantized:
        length = block * bucket_size
        return rounded(number * block, jax.lax.dynamic_slice_in_dim(x, number * length, length))

    wires = [rounded(first, part) for first, part in parts if part.size]
    if blocks:
        stacked = jax.lax.map(rounded_block, jnp.arange(blocks))
        wires.insert(0, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacked))
    return wires[0] if len(wires) == 1 else Quantized(*(jnp.concatenate(leaves) for leaves in zip(*wires, strict=True)))


@jax.jit
def _rounded_lane(rounding: Partial, r: Array, u: Array) -> Array:
    """One function of all lanes: it is traced and lowered once."""
    return rounding(r, u)


def dequantize(wire: Quantized, values: Array | np.ndarray, *, bits: int, bucket_size: int) -> Array:
    """Read a message.

    Args:
      wire: what `quantize` made, or any range of its buckets.
      values: `[levels]` float32.
      bits: width of a code.
      bucket_size: B.

    Returns:
      `[buckets * bucket_size]` float32.

    Example:
      >>> import jax.numpy as jnp
      >>> wire = Quantized(jnp.array([[0b1001]], jnp.uint8), jnp.array([2.0]))
      >>> dequantize(wire, jnp.array([-1.0, 0.0, 1.0]), bits=2, bucket_size=2).tolist()
      [0.0, 2.0]
    """
    table = jnp.pad(jnp.asarray(values, jnp.float32), (0, 2**bits - values.shape[0]), mode="edge")
    codes = unpack(wire.codes, bits, bucket_size).astype(jnp.int32)
    return (wire.scale[:, None] * table.at[codes].get(mode="promise_in_bounds")).reshape(-1)


def bucketed(x: Array, bucket_size: int) -> Array:
    """Cut a vector `[d]` into float32 buckets `[ceil(d / bucket_size), bucket_size]`, the last filled up with zeros."""
    return jnp.pad(x.astype(jnp.float32), (0, -x.size % bucket_size)).reshape(-1, bucket_size)


def norms(buckets: Array, exponent: float) -> Array:
    """The q-norm of each bucket `[buckets]`, for q = 2 or infinity; it neither vanishes nor overflows on the way."""
    # Of bits, which are ordered like the numbers, and above them NaN: XLA's vectorized maximum of floats on a CPU drops
    # a NaN.
    integers = jnp.int64 if buckets.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(jnp.abs(buckets), integers)
    largest = jax.lax.bitcast_convert_type(jnp.max(bits, axis=1), buckets.dtype)
    if exponent == math.inf:
        return largest
    # Squares of numbers below 1e-23 or above 1e19 leave float32's range; divided by the largest they do not.
    unit = buckets / jnp.where(largest > 0, largest, 1.0)[:, None]
    return largest * jnp.sqrt(jnp.sum(unit**2, axis=1))


def normalized(buckets: Array, scale: Array) -> Array:
    """Buckets by their scales, in [-1, 1]; zero where a scale is zero or not finite."""
    usable = (scale > 0) & jnp.isfinite(scale)
    ratio = buckets / jnp.where(usable, scale, 1.0)[:, None]
    return jnp.where(usable[:, None], jnp.clip(ratio, -1.0, 1.0), 0.0)


def check_bucket(bucket_size: int) -> None:
    """Refuse a bucket without coordinates."""
    if bucket_size < 1:
        raise ValueError(f"bucket_size must be positive, got {bucket_size}")


def norm_exponent(norm: Geometry) -> float:
    """The exponent of the norm that scales, for the two that codecs know."""
    if norm.exponent is None or norm.exponent not in (2, math.inf) or norm.transform is not None:
        raise ValueError(f"norm must be geometry.l2() or geometry.linf(), got {norm.name}")
    return norm.exponent
