r"""What an attacker is: a pure function from all that workers computed to what the faulty ones send.

.. math:: (b_1, \dots, b_f) = a(\text{key}, H, G), \qquad
          H = (g_{f+1}, \dots, g_n), \quad G = (g_1, \dots, g_f)

H are the honest gradients, which an omniscient attacker sees, and G the faulty workers' own, as they would be sent were
those workers honest: a failing machine spoils its own gradient and knows no other. How many are faulty is their shape's
to say.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp

from jaxrobust.typing import Array, Key

Attacker: TypeAlias = Callable[[Key | None, Array, Array], Array]
"""`(key, honest [n - f, d], own [f, d]) -> sent [f, d]`; without randomness it ignores the key. Pure and traced."""


def colluding(forge: Callable[[Key | None, Array, int], Array]) -> Attacker:
    """Make an attacker whose workers all send one vector.

    Args:
      forge: `(key, honest [n - f, d], faulty) -> [d]`.

    Returns:
      An `Attacker`. It raises ValueError for arguments that are no matrices of equal dimension, or without a row.

    Example:
      >>> import jax.numpy as jnp
      >>> attacker = colluding(lambda key, honest, faulty: faulty * honest[0])
      >>> attacker(None, jnp.array([[1.0, 3.0]]), jnp.zeros((2, 2))).tolist()
      [[2.0, 6.0], [2.0, 6.0]]
    """

    def attack(key: Key | None, honest: Array, own: Array) -> Array:
        shapes = jnp.shape(honest), jnp.shape(own)
        if any(len(shape) != 2 or not shape[0] for shape in shapes) or shapes[0][1] != shapes[1][1]:
            raise ValueError(
                f"honest must be [n - f, d] and own [f, d], of a row or more, got {shapes[0]}, {shapes[1]}"
            )
        vector = forge(key, honest, shapes[1][0])
        return jnp.broadcast_to(vector.astype(own.dtype), shapes[1])

    return attack


def needed(key: Key | None) -> Key:
    """The key of an attacker that draws.

    Args:
      key: what the attacker was given.

    Returns:
      The key.

    Raises:
      ValueError: for None.
    """
    if key is None:
        raise ValueError("key must be given for an attacker that draws, got None: pass jax.random.key(0)")
    return key
