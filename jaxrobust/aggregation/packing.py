"""Bit packing: codes of 1 to 8 bits as dense bytes, the only narrow wire that every backend keeps narrow.

A row of codes is cut into g lanes side by side, g the fewest codes that fill whole bytes: two of 4 bits, eight of 3.
The codes at one place of all lanes form a word of g b bits, least significant lane first, and its bytes lie in rows of
their own: every operation runs along whole lanes, as vector units want it, and none along pairs or octets.
XLA's own 4-bit arrays travel as bytes on some backends, and integer sums of codes wrap around, so codes are packed by
hand and gathered, never summed.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.typing import Array, PyTree


def pack(codes: Array, bits: int) -> Array:
    """Codes in dense bytes.

    Args:
      codes: `[..., count]` unsigned integers, each below 2**bits; every row is packed by itself.
      bits: width of a code, 1 to 8.

    Returns:
      `[..., packed_size(count, bits)]` uint8.

    Raises:
      ValueError: for a width outside 1 to 8.

    Example:
      >>> import jax.numpy as jnp
      >>> pack(jnp.array([1, 2, 3, 4], jnp.uint8), bits=4).tolist()
      [49, 66]
    """
    check_width(bits)
    wide = _lanes(bits)
    # Cut into eight where that comes out even: callers that made codes in eight lanes then never join them.
    fine = 8 // wide if codes.shape[-1] % 8 == 0 else 1
    lanes = split(codes, wide * fine)
    # Byte by byte: of one wide word cast to bytes, XLA on a CPU computes the whole word anew for every byte.
    rows = [
        _byte([(lane, place * bits - 8 * number) for place, lane in enumerate(lanes[part::fine])])
        for number in range(wide * bits // 8)
        for part in range(fine)
    ]
    return join(rows, len(rows) * rows[0].shape[-1])


def unpack(packed: Array, bits: int, count: int) -> Array:
    """The codes that `pack` put into bytes.

    Args:
      packed: `[..., bytes]` uint8.
      bits: width of a code, 1 to 8.
      count: how many codes a row was made of.

    Returns:
      `[..., count]` uint8.

    Raises:
      ValueError: for a width outside 1 to 8, or rows that are not as long as so many codes make them.

    Example:
      >>> import jax.numpy as jnp
      >>> unpack(jnp.array([49, 66], jnp.uint8), bits=4, count=4).tolist()
      [1, 2, 3, 4]
    """
    check_width(bits)
    if packed.shape[-1] != packed_size(count, bits):
        raise ValueError(
            f"packed must have rows of {packed_size(count, bits)} bytes for {count} codes of {bits} bits, "
            f"got {packed.shape[-1]}"
        )
    rows = [(row, 8 * number) for number, row in enumerate(split(packed, _lanes(bits) * bits // 8))]
    lanes = [_byte([(row, place - first) for row, place in rows]) for first in range(0, _lanes(bits) * bits, bits)]
    return join([lane & jnp.uint8(2**bits - 1) for lane in lanes], count)


def packed_size(count: int, bits: int) -> int:
    """Bytes that `pack` makes of a row.

    Args:
      count: codes in the row.
      bits: width of a code, 1 to 8.

    Returns:
      `count * bits / 8` where the count fills its lanes.

    Example:
      >>> packed_size(1024, bits=3), packed_size(10, bits=4), packed_size(10, bits=3)
      (384, 5, 6)
    """
    lanes = _lanes(bits)
    return -(-count // lanes) * lanes * bits // 8


def split(row: Array, lanes: int) -> list[Array]:
    """Cut a row into equal lanes side by side; a ragged end is filled up with zeros.

    Args:
      row: `[..., count]`.
      lanes: how many.

    Returns:
      So many arrays `[..., ceil(count / lanes)]`.

    Example:
      >>> import jax.numpy as jnp
      >>> [lane.tolist() for lane in split(jnp.arange(5), 2)]
      [[0, 1, 2], [3, 4, 0]]
    """
    padded = jnp.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, -row.shape[-1] % lanes)])
    return jnp.split(padded, lanes, axis=-1)


def join(lanes: list[Array], count: int) -> Array:
    """The row that `split` took apart.

    Args:
      lanes: arrays `[..., length]`.
      count: length of the row.

    Returns:
      `[..., count]`.

    Example:
      >>> import jax.numpy as jnp
      >>> join(split(jnp.arange(5), 2), 5).tolist()
      [0, 1, 2, 3, 4]
    """
    return jnp.concatenate(lanes, axis=-1)[..., :count]


def wire_bits(wire: PyTree) -> int:
    """Number of bits of a message, from its shapes and dtypes alone.

    Args:
      wire: pytree of arrays, or of `jax.ShapeDtypeStruct`.

    Returns:
      The number of bits.

    Example:
      >>> import jax.numpy as jnp
      >>> wire_bits({"codes": jnp.zeros(5, jnp.uint8), "scale": jnp.zeros(1)})
      72
    """
    return sum(8 * int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(wire))


def check_width(bits: int, least: int = 1) -> None:
    """Refuse a width of code that does not fit a byte."""
    if not least <= bits <= 8:
        raise ValueError(f"bits must lie in {least} to 8, got {bits}")


def _lanes(bits: int) -> int:
    return 8 // math.gcd(8, bits)


def _byte(parts: list[tuple[Array, int]]) -> Array:
    """One byte from bytes, each shifted to its place; what lies outside is cut off."""
    byte = jnp.zeros(parts[0][0].shape, jnp.uint8)
    for part, place in parts:
        if -8 < place < 8:
            narrow = part.astype(jnp.uint8)
            byte |= narrow << jnp.uint8(place) if place >= 0 else narrow >> jnp.uint8(-place)
    return byte
