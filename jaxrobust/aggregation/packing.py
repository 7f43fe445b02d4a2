"""Bit packing: codes of 1 to 8 bits as a dense stream of bytes, the only narrow wire that every backend keeps narrow.

Bit i of code n is bit 8 m + j = n b + i of the stream, that is bit j of byte m: least significant first.
XLA's own 4-bit arrays travel as bytes on some backends, and integer sums of codes wrap around, so codes are packed by
hand and gathered, never summed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.typing import Array, PyTree


def pack(codes: Array, bits: int) -> Array:
    """Codes side by side in a stream of bytes.

    Args:
      codes: `[count]` uint8, each below 2**bits.
      bits: width of a code, 1 to 8.

    Returns:
      `[ceil(count * bits / 8)]` uint8; the last byte is filled up with zeros.

    Raises:
      ValueError: for a width outside 1 to 8.

    Example:
      >>> import jax.numpy as jnp
      >>> pack(jnp.array([1, 2, 3], jnp.uint8), bits=4).tolist()
      [33, 3]
    """
    check_width(bits)
    stream = ((codes[:, None] >> jnp.arange(bits, dtype=jnp.uint8)) & jnp.uint8(1)).reshape(-1)
    octets = jnp.pad(stream, (0, -stream.size % 8)).reshape(-1, 8)
    return jnp.sum(octets << jnp.arange(8, dtype=jnp.uint8), axis=1, dtype=jnp.uint8)


def unpack(packed: Array, bits: int, count: int) -> Array:
    """The codes that `pack` put into a stream.

    Args:
      packed: `[bytes]` uint8.
      bits: width of a code, 1 to 8.
      count: how many codes to read.

    Returns:
      `[count]` uint8.

    Raises:
      ValueError: for a width outside 1 to 8, or more codes than the stream holds.

    Example:
      >>> import jax.numpy as jnp
      >>> unpack(jnp.array([33, 3], jnp.uint8), bits=4, count=3).tolist()
      [1, 2, 3]
    """
    check_width(bits)
    if count * bits > 8 * packed.size:
        raise ValueError(f"count must be at most {8 * packed.size // bits} for {packed.size} bytes, got {count}")
    stream = ((packed[:, None] >> jnp.arange(8, dtype=jnp.uint8)) & jnp.uint8(1)).reshape(-1)
    codes = stream[: count * bits].reshape(count, bits)
    return jnp.sum(codes << jnp.arange(bits, dtype=jnp.uint8), axis=1, dtype=jnp.uint8)


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
