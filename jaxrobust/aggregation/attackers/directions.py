r"""Where colluders push: directions from the honest mean, of the gradients' own scale.

.. math:: b = \bar g + \gamma p(H), \qquad \bar g = \frac{1}{|H|} \sum_{i \in H} g_i

Inner-product manipulation goes along `opposite` (strength 1 + epsilon), "a little is enough" along `spread`.

Reference: Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
Federated Learning", https://doi.org/10.14722/ndss.2021.24498, 2021 (section IV-A: inverse unit vector, inverse standard
deviation, inverse sign).
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp

from jaxrobust.typing import Array

Direction: TypeAlias = Callable[[Array], Array]
"""`(honest [n - f, d]) -> [d]`."""


def opposite(honest: Array) -> Array:
    r"""Against the mean.

    .. math:: p = -\bar g

    Args:
      honest: `[n - f, d]`.

    Returns:
      `[d]`.

    Example:
      >>> import jax.numpy as jnp
      >>> opposite(jnp.array([[1.0, -2.0], [3.0, -2.0]])).tolist()
      [-2.0, 2.0]
    """
    return -jnp.mean(honest, axis=0)


def spread(honest: Array) -> Array:
    r"""Below the mean by each coordinate's standard deviation among the honest.

    .. math:: p_j = -\sigma_j, \qquad \sigma_j^2 = \frac{1}{|H| - 1} \sum_{i \in H} (g_{ij} - \bar g_j)^2

    Args:
      honest: `[n - f, d]`, two rows or more.

    Returns:
      `[d]`.

    Raises:
      ValueError: for one honest worker.

    Example:
      >>> import jax.numpy as jnp
      >>> spread(jnp.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])).tolist()
      [-1.0, -0.0]
    """
    if len(honest) < 2:
        raise ValueError(f"honest must have two rows or more for their spread, got {len(honest)}")
    return -jnp.std(honest, axis=0, ddof=1)


def opposite_sign(honest: Array) -> Array:
    r"""Against the sign of every coordinate of the mean, as long as the mean.

    .. math:: p = -\frac{\|\bar g\|_2}{\sqrt d} \operatorname{sign}(\bar g)

    Args:
      honest: `[n - f, d]`.

    Returns:
      `[d]`.

    Example:
      >>> import jax.numpy as jnp
      >>> opposite_sign(jnp.array([[1.0, -7.0]])).tolist()
      [-5.0, 5.0]
    """
    mean = jnp.mean(honest, axis=0)
    return -jnp.sqrt(jnp.mean(jnp.square(mean))) * jnp.sign(mean)
