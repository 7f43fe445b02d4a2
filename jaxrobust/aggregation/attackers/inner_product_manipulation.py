r"""Inner-product manipulation: colluders send the honest mean's opposite, scaled.

.. math:: b = -\varepsilon \bar g = -\frac{\varepsilon}{n - f} \sum_{i \in H} g_i

A small epsilon lies closer to the honest than they lie to each other, and Krum takes it; a large one shifts medians.
Two papers scale alike attacks differently, by the number of honest and of faulty workers; each has a function here.
"""

import jax.numpy as jnp

from jaxrobust.aggregation.attackers.attacker import Attacker, colluding
from jaxrobust.typing import Array, Key


def inner_product_manipulation(epsilon: float = 0.5) -> Attacker:
    r"""Send the honest mean's opposite, times epsilon.

    .. math:: b = -\frac{\varepsilon}{n - f} \sum_{i \in H} g_i

    Args:
      epsilon: > 0; the paper takes 0.5 against Krum and medians.

    Returns:
      An `Attacker`.

    Raises:
      ValueError: for an epsilon that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> inner_product_manipulation(0.5)(None, jnp.array([[1.0], [3.0]]), jnp.zeros((1, 1))).tolist()
      [[-1.0]]

    Reference: Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation",
    https://arxiv.org/abs/1903.03936, 2019 (section 4).
    """
    _check(epsilon)

    def forge(key: Key | None, honest: Array, faulty: int) -> Array:
        del key, faulty
        return -epsilon * jnp.mean(honest, axis=0)

    return colluding(forge)


def epsilon_reverse(epsilon: float = 0.1) -> Attacker:
    r"""Send the honest sum's opposite, times epsilon over the number of faulty workers.

    .. math:: b = -\frac{\varepsilon}{f} \sum_{i \in H} g_i

    It is inner-product manipulation with epsilon (n - f) / f: with 12 workers, 2 of them faulty, epsilons of 0.1 and 10
    send -0.5 and -50 times the mean.

    Args:
      epsilon: > 0; the paper takes 0.1 against Krum and 10 against the median.

    Returns:
      An `Attacker`.

    Raises:
      ValueError: for an epsilon that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> epsilon_reverse(0.5)(None, jnp.array([[1.0], [3.0]]), jnp.zeros((1, 1))).tolist()
      [[-2.0]]

    Reference: Ramezani-Kebrya, Tabrizian, Faghri and Popovski, "MixTailor: Mixed Gradient Aggregation for Robust
    Learning Against Tailored Attacks", https://arxiv.org/abs/2207.07941, 2022.
    """
    _check(epsilon)

    def forge(key: Key | None, honest: Array, faulty: int) -> Array:
        del key
        return -(epsilon / faulty) * jnp.sum(honest, axis=0)

    return colluding(forge)


def _check(epsilon: float) -> None:
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
