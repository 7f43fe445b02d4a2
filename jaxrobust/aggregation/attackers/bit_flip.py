r"""Silent data corruption: one bit of the exponent of one coordinate of the own gradient is wrong.

.. math:: b_{ij} = g_{ij} \, 2^{\pm 2^k}

for a bit k of the exponent, from 0, that stood at 0 (+) or 1 (-); the exponent of all ones means infinity or NaN.
"""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.attackers.attacker import Attacker, needed
from jaxrobust.typing import Array, Key


def bit_flip(bit: int | None = None) -> Attacker:
    r"""Flip one bit of one coordinate, drawn for each faulty worker.

    .. math:: b_{ij} = g_{ij} \, 2^{\pm 2^k}

    Args:
      bit: k, which bit of the exponent, the lowest being 0; float32 has 8 of them. None draws it too.

    Returns:
      An `Attacker`; it raises ValueError without a key, or for a bit that the gradients' dtype has not.

    Raises:
      ValueError: for a negative bit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> bit_flip(bit=1)(jax.random.key(0), jnp.zeros((1, 1)), jnp.ones((1, 1))).tolist()
      [[0.25]]

    Reference: Dixit, Pendharkar, Beadon, Mason, Chakravarthy, Muthiah and Sankar, "Silent Data Corruptions at Scale",
    https://arxiv.org/abs/2102.11245, 2021.
    """
    if bit is not None and bit < 0:
        raise ValueError(f"bit must not be negative, got {bit}")

    def attack(key: Key | None, honest: Array, own: Array) -> Array:
        del honest
        layout = jnp.finfo(own.dtype)
        if bit is not None and bit >= layout.nexp:
            raise ValueError(f"bit must be less than the {layout.nexp} of {own.dtype}'s exponent, got {bit}")
        word = jnp.dtype(f"uint{layout.bits}")

        def one(row_key: Key, row: Array) -> Array:
            place_key, bit_key = jax.random.split(row_key)
            place = jax.random.randint(place_key, (), 0, row.size)
            drawn = jax.random.randint(bit_key, (), 0, layout.nexp) if bit is None else jnp.int32(bit)
            mask = jnp.ones((), word) << (drawn + layout.nmant).astype(word)
            # As words all the way: arithmetic would rewrite the payload of a number that has become NaN.
            words = jax.lax.bitcast_convert_type(row, word) ^ jnp.where(jnp.arange(row.size) == place, mask, 0)
            return jax.lax.bitcast_convert_type(words, row.dtype)

        return jax.vmap(one)(jax.random.split(needed(key), len(own)), own)

    return attack
