r"""Min-sum: as far as possible from the honest mean, and no farther from the honest in all than one of them is.

.. math:: b = \bar g + \gamma p, \qquad \gamma = \max \Bigl\{ \gamma :
          \sum_{i \in H} \| b - g_i \|^2 \le \max_{i \in H} \sum_{j \in H} \| g_i - g_j \|^2 \Bigr\}

The published search halves its steps towards gamma; the constraint is a quadratic in it, and solved here.
"""

import jax.numpy as jnp

from jaxrobust.aggregation.attackers.attacker import Attacker, colluding
from jaxrobust.aggregation.attackers.directions import Direction, spread
from jaxrobust.aggregation.attackers.min_max import squared_distances
from jaxrobust.typing import Array, Key


def min_sum(direction: Direction = spread) -> Attacker:
    r"""Send the farthest vector along a direction whose sum of squared distances to the honest is none of an outlier.

    .. math:: \gamma = \sqrt{\frac{S - \sum_{i \in H} \|\bar g - g_i\|^2}{|H| \, \|p\|^2}}, \qquad
              S = \max_{i \in H} \sum_{j \in H} \| g_i - g_j \|^2

    for the deviations from the mean sum to zero.

    Args:
      direction: p, `(honest [n - f, d]) -> [d]`; one that is all zeros sends the mean.

    Returns:
      An `Attacker`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation.attackers import directions
      >>> min_sum(directions.opposite)(None, jnp.array([[1.0], [3.0]]), jnp.zeros((1, 1))).tolist()
      [[1.0]]

    Reference: Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses
    for Federated Learning", https://doi.org/10.14722/ndss.2021.24498, 2021 (section IV-C; equation 9).
    """

    def forge(key: Key | None, honest: Array, faulty: int) -> Array:
        del key, faulty
        mean, push = jnp.mean(honest, axis=0), direction(honest)
        largest = jnp.max(jnp.sum(squared_distances(honest), axis=1))
        room = jnp.maximum(largest - jnp.sum(jnp.square(honest - mean)), 0)
        length = jnp.sum(jnp.square(push))
        return mean + jnp.where(length > 0, jnp.sqrt(room / (len(honest) * length)), 0) * push

    return colluding(forge)
