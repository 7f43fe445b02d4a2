r"""Sign flip: each faulty worker sends its own gradient's opposite, and needs to know no other.

.. math:: b_i = -\gamma g_i
"""

from jaxrobust.aggregation.attackers.attacker import Attacker
from jaxrobust.typing import Array, Key


def sign_flip(scale: float = 1.0) -> Attacker:
    r"""Send the own gradient's opposite.

    .. math:: b_i = -\gamma g_i

    Args:
      scale: gamma > 0.

    Returns:
      An `Attacker`.

    Raises:
      ValueError: for a scale that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> sign_flip(scale=2.0)(None, jnp.array([[5.0, 5.0]]), jnp.array([[1.0, -3.0]])).tolist()
      [[-2.0, 6.0]]

    Reference: Li, Xu, Chen, Giannakis and Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed
    Learning from Heterogeneous Datasets", https://arxiv.org/abs/1811.03761, 2019 (section 5).
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")

    def attack(key: Key | None, honest: Array, own: Array) -> Array:
        del key, honest
        return -scale * own

    return attack
