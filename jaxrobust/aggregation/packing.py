"""Bit packing: codes of 1 to 8 bits as a dense stream of bytes, the only narrow wire that every backend keeps narrow.

Bit i of code n is bit 8 m + j = n b + i of the stream, that is bit j of byte m: least significant first. Eight codes of
b bits fill b bytes exactly, so that a stream is made and read in groups of eight, by shifts of 32-bit words.
XLA's own 4-bit arrays travel as bytes on some backends, and integer sums of codes wrap around, so codes are packed by
hand and gathered, never summed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.typing import Array, PyTree

_GROUP = 8


def pack(codes: Array, bits: int) -> Array:
    """Codes side by side in a stream of bytes.

    Args:
      codes: `[..., count]` unsigned integers, each below 2**bits; every row is a stream of its own.
      bits: width of a code, 1 to 8.

    Returns:
      `[..., ceil(count * bits / 8)]` uint8; the last byte is filled up with zeros.

    Raises:
      ValueError: for a width outside 1 to 8.

    Example:
      >>> import jax.numpy as jnp
      >>> pack(jnp.array([1, 2, 3], jnp.uint8), bits=4).tolist()
      [33, 3]
    """
    check_width(bits)
    lanes = split(codes)
    # Byte by byte: of one wide word cast to bytes, XLA on a CPU computes the whole word anew for every byte.
    groups = jnp.stack([_octet(lanes, bits, 8 * number) for number in range(bits)], axis=-1)
    return groups.reshape(*codes.shape[:-1], -1)[..., : -(-codes.shape[-1] * bits // 8)]


def unpack(packed: Array, bits: int, count: int) -> Array:
    """The codes that `pack` put into a stream.

    Args:
      packed: `[..., bytes]` uint8.
      bits: width of a code, 1 to 8.
      count: how many codes to read from each row.

    Returns:
      `[..., count]` uint8.

    Raises:
      ValueError: for a width outside 1 to 8, or more codes than a row holds.

    Example:
      >>> import jax.numpy as jnp
      >>> unpack(jnp.array([33, 3], jnp.uint8), bits=4, count=3).tolist()
      [1, 2, 3]
    """
    check_width(bits)
    held = packed.shape[-1]
    if count * bits > 8 * held:
        raise ValueError(f"count must be at most {8 * held // bits} for {held} bytes, got {count}")
    padding = [(0, 0)] * (packed.ndim - 1) + [(0, -held % bits)]
    groups = jnp.pad(packed, padding).reshape(*packed.shape[:-1], -1, bits).astype(jnp.uint32)
    half = _GROUP // 2 * bits
    halves = [_merged([(groups[..., place], 8 * place - first) for place in range(bits)]) for first in (0, half)]
    shifts = jnp.arange(_GROUP // 2, dtype=jnp.uint32) * jnp.uint32(bits)
    codes = (jnp.stack(halves, axis=-1)[..., None] >> shifts) & jnp.uint32(2**bits - 1)
    return codes.astype(jnp.uint8).reshape(*packed.shape[:-1], -1)[..., :count]


def split(row: Array) -> list[Array]:
    """Eight lanes of a row: lane i holds every eighth element from i on; a ragged end is filled up with zeros.

    Args:
      row: `[..., count]`.

    Returns:
      Eight arrays `[..., ceil(count / 8)]`.

    Example:
      >>> import jax.numpy as jnp
      >>> [lane.tolist() for lane in split(jnp.arange(9))][:2]
      [[0, 8], [1, 0]]
    """
    padding = [(0, 0)] * (row.ndim - 1) + [(0, -row.shape[-1] % _GROUP)]
    groups = jnp.pad(row, padding).reshape(*row.shape[:-1], -1, _GROUP)
    return [groups[..., index] for index in range(_GROUP)]


def join(lanes: list[Array], count: int) -> Array:
    """The row that `split` took apart.

    Args:
      lanes: eight arrays `[..., ceil(count / 8)]`.
      count: length of the row.

    Returns:
      `[..., count]`.

    Example:
      >>> import jax.numpy as jnp
      >>> join(split(jnp.arange(9)), 9).tolist()
      [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    groups = jnp.stack(lanes, axis=-1)
    return groups.reshape(*groups.shape[:-2], -1)[..., :count]


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


def _octet(lanes: list[Array], bits: int, first: int) -> Array:
    """The byte of a group that begins at its bit `first`."""
    return _merged([(lane, index * bits - first) for index, lane in enumerate(lanes)], 8).astype(jnp.uint8)


def _merged(parts: list[tuple[Array, int]], width: int = 32) -> Array:
    """One word of so many bits from numbers of a byte at most, each shifted to its place."""
    word = jnp.zeros(parts[0][0].shape, jnp.uint32)
    for part, place in parts:
        if -8 < place < width:
            wide = part.astype(jnp.uint32)
            word |= wide << jnp.uint32(place) if place >= 0 else wide >> jnp.uint32(-place)
    return word
