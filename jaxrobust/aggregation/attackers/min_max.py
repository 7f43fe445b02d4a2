r"""Min-max: as far as possible from the honest mean, and from no honest worker farther than two of them are apart.

.. math:: b = \bar g + \gamma p, \qquad
          \gamma = \max \{ \gamma : \max_{i \in H} \| b - g_i \| \le \max_{i, j \in H} \| g_i - g_j \| \}

The published search halves its steps towards gamma; each constraint is a quadratic in it, so that here gamma is the
least of |H| roots.
"""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.attackers.attacker import Attacker, colluding
from jaxrobust.aggregation.attackers.directions import Direction, spread
from jaxrobust.typing import Array, Key


def min_max(direction: Direction = spread) -> Attacker:
    r"""Send the farthest vector along a direction whose largest distance to the honest is none among outliers.

    .. math:: \gamma = \min_{i \in H} \frac{-\beta_i + \sqrt{\beta_i^2 + \|p\|^2 (D^2 - \|\bar g - g_i\|^2)}}{\|p\|^2},
              \quad \beta_i = \langle p, \bar g - g_i \rangle

    with D the largest distance between two honest gradients. The mean lies within D of each, so that gamma >= 0.

    Args:
      direction: p, `(honest [n - f, d]) -> [d]`; one that is all zeros sends the mean.

    Returns:
      An `Attacker`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation.attackers import directions
      >>> min_max(directions.opposite)(None, jnp.array([[1.0], [3.0]]), jnp.zeros((1, 1))).tolist()
      [[1.0]]

    Reference: Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses
    for Federated Learning", https://doi.org/10.14722/ndss.2021.24498, 2021 (section IV-C; equation 8).
    """

    def forge(key: Key | None, honest: Array, faulty: int) -> Array:
        del key, faulty
        mean, push = jnp.mean(honest, axis=0), direction(honest)
        away = mean - honest
        largest = jnp.max(squared_distances(honest))
        length = jnp.sum(jnp.square(push))
        along = jnp.matmul(away, push, precision=jax.lax.Precision.HIGHEST)
        room = jnp.maximum(largest - jnp.sum(jnp.square(away), axis=1), 0)
        root = jnp.sqrt(jnp.square(along) + length * room)
        # The larger root of each quadratic, by the form that subtracts no near-equal numbers.
        gamma = jnp.where(along > 0, room / (along + root), (root - along) / length)
        return mean + jnp.where(length > 0, jnp.min(gamma), 0) * push

    return colluding(forge)


def squared_distances(rows: Array) -> Array:
    """Squared Euclidean distances between rows, differences taken first: nothing cancels.

    Args:
      rows: `[n, d]`.

    Returns:
      `[n, n]`.

    Example:
      >>> import jax.numpy as jnp
      >>> squared_distances(jnp.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
      [[0.0, 25.0], [25.0, 0.0]]
    """
    return jax.lax.map(lambda row: jnp.sum(jnp.square(rows - row), axis=1), rows)
