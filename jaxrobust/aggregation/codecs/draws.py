r"""Uniform numbers for stochastic rounding: one for each coordinate of each bucket, by Threefry-2x32 with 20 rounds.

A draw is a function of the key, its bucket's number and its place in the bucket, through a keyed bijection of pairs of
32-bit words:

.. math:: (w_0, w_1) = E_k(m, \lfloor i / 4 \rfloor), \qquad u_i \in \{ w_0, w_0 \ll 16, w_1, w_1 \ll 16 \} / 2^{32}

Four coordinates share a block of 64 bits: each reads a word of 32, its own half first (the shifts rotate). Every draw
is uniform to 2^-23, so that rounding is unbiased; two that share a word depend on each other below 2^-16 only, which
no variance of a sum can show. `jax.random.bits` spends a block on each coordinate, fifteen times slower on a CPU.

Reference: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405, 2011.
"""

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, Key

_ROTATIONS, _PARITY, _ROUNDS = (13, 15, 26, 6, 17, 29, 16, 24), 0x1BD11BDA, 20


def uniform_lanes(key: Key, buckets: int, columns: int, first: int | Array = 0) -> list[Array]:
    """Draws in [0, 1) for eight lanes of every bucket, in multiples of 2^-23.

    Args:
      key: a key of any kind.
      buckets: how many.
      columns: length of a lane, an eighth of a bucket.
      first: number of the first bucket.

    Returns:
      Eight arrays `[buckets, columns]` float32. The draws of a bucket do not depend on how many others there are.

    Example:
      >>> import jax
      >>> lanes = uniform_lanes(jax.random.key(0), buckets=2, columns=3)
      >>> len(lanes), lanes[0].shape, all(bool((0 <= lane).all() and (lane < 1).all()) for lane in lanes)
      (8, (2, 3), True)
    """
    secret = jax.random.bits(key, (2,), jnp.uint32)
    bucket, column = (jax.lax.broadcasted_iota(jnp.uint32, (buckets, columns), axis) for axis in (0, 1))
    bucket += jnp.asarray(first, jnp.uint32)
    words: list[Array] = []
    for half in (0, 1):
        for word in threefry(secret[0], secret[1], bucket, column * jnp.uint32(2) + jnp.uint32(half)):
            words += [word, _rotated(word, 16)]
    return [_unit(word) for word in words]


@jax.jit
def threefry(first_key: Array, second_key: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds: pairs of words to pairs of words, one to one for every key.

    Args:
      first_key: uint32, half of the key.
      second_key: uint32, the other half.
      first: uint32 of any shape, half of the counter.
      second: uint32 of the same shape, the other half.

    Returns:
      Two arrays uint32 of that shape.

    Example:
      >>> import jax.numpy as jnp
      >>> zero = jnp.uint32(0)
      >>> [hex(int(word)) for word in threefry(zero, zero, zero, zero)]
      ['0x6b200159', '0x99ba4efe']
    """
    keys = (first_key, second_key, first_key ^ second_key ^ jnp.uint32(_PARITY))
    first, second = first + keys[0], second + keys[1]
    for turn in range(_ROUNDS):
        first += second
        second = _rotated(second, _ROTATIONS[turn % 8]) ^ first
        if turn % 4 == 3:
            injection = turn // 4 + 1
            first += keys[injection % 3]
            second += keys[(injection + 1) % 3] + jnp.uint32(injection)
    return first, second


def _rotated(word: Array, places: int) -> Array:
    return (word << jnp.uint32(places)) | (word >> jnp.uint32(32 - places))


def _unit(word: Array) -> Array:
    # The upper 23 bits as the mantissa of a number in [1, 2).
    return jax.lax.bitcast_convert_type((word >> jnp.uint32(9)) | jnp.uint32(0x3F800000), jnp.float32) - 1.0
