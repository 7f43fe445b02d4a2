"""Minimum-diameter averaging: the mean of the n - f vectors that lie closest together."""

import jax.numpy as jnp

from jaxrobust.aggregation.rules.distances import squared_distances
from jaxrobust.aggregation.rules.subsets import best_subset
from jaxrobust.typing import Array, Rule


def minimum_diameter(faulty: int) -> Rule:
    r"""Average the set of n - f vectors whose largest distance is least.

    .. math:: F(x_1, \dots, x_n) = \frac{1}{n - f} \sum_{i \in S^*} x_i, \qquad
        S^* = \arg\min_{|S| = n - f} \max_{i, j \in S} \|x_i - x_j\|

    All sets are looked at: C(n, f) of them. The first in lexicographic order wins a tie. A dead worker counts as one of
    the faulty.

    Args:
      faulty: f, how many workers may lie; n > 2f, and at most a million sets.

    Returns:
      A `Rule` without state; a chosen worker's weight is 1 / (n - f).

    Raises:
      ValueError: for negative faulty, and, when applied, for too few workers or too many sets.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [-90.0], [6.0]])
      >>> minimum_diameter(faulty=1).apply(None, rows, jnp.ones(4, bool), (), None)[0].tolist()
      [3.0]

    Reference: El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium",
    https://arxiv.org/abs/1802.07927, 2018 (section 3, "Brute").
    """

    def diameter(products: Array, members: Array) -> Array:
        return jnp.max(squared_distances(products) * members[:, None] * members[None, :])

    return best_subset("minimum_diameter", faulty, diameter, most=1_000_000, batch_size=256)
