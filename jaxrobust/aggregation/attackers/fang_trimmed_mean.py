r"""Against medians and trimmed means: every coordinate just beyond the honest, on the side away from where they point.

.. math:: b_{ij} \in \begin{cases} [\mu_j - |\mu_j| (1 - 1/b) \text{ or } b \mu_j, \; \mu_j] & s_j = 1 \\
          [\nu_j, \; b \nu_j \text{ or } \nu_j + |\nu_j| (1 - 1/b)] & s_j = -1 \end{cases}

with s_j the sign of the honest mean, mu_j and nu_j the least and the largest honest value: the interval reaches from it
to b times it, or to a b-th of it, whichever lies outside.
"""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.attackers.attacker import Attacker, needed
from jaxrobust.typing import Array, Key


def fang_trimmed_mean(reach: float = 2.0) -> Attacker:
    r"""Send values drawn just beyond the honest range.

    .. math:: b_{ij} \sim U[\text{honest extreme}, \text{its } b\text{-fold or } b\text{-th part}]

    Each worker draws its own. A trimmed mean that drops as many values as there are faulty workers drops honest ones at
    one end and all of these at the other; its bias is the honest range's, whatever b.

    Args:
      reach: b > 1, the paper's is 2.

    Returns:
      An `Attacker`; it raises ValueError without a key.

    Raises:
      ValueError: for a reach of 1 or less.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> honest = jnp.array([[1.0, -3.0], [2.0, -4.0]])
      >>> sent = fang_trimmed_mean()(jax.random.key(0), honest, jnp.zeros((1, 2)))
      >>> bool(0.5 <= sent[0, 0] <= 1.0), bool(-3.0 <= sent[0, 1] <= -1.5)
      (True, True)

    Reference: Fang, Cao, Jia and Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
    https://arxiv.org/abs/1911.11815, 2020 (section 4.3, full knowledge).
    """
    if not reach > 1:
        raise ValueError(f"reach must be more than 1, got {reach}")

    def attack(key: Key | None, honest: Array, own: Array) -> Array:
        least, largest = jnp.min(honest, axis=0), jnp.max(honest, axis=0)
        below = jnp.where(least > 0, least / reach, least * reach)
        above = jnp.where(largest > 0, largest * reach, largest / reach)
        rising = jnp.mean(honest, axis=0) >= 0
        near, far = jnp.where(rising, least, largest), jnp.where(rising, below, above)
        return near + (far - near) * jax.random.uniform(needed(key), own.shape, own.dtype)

    return attack
