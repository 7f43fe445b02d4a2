"""Multi-Krum: the mean of the vectors that Krum ranks best."""

from jaxrobust.aggregation.rules.krum import nearest_neighbors_rule
from jaxrobust.typing import Rule


def multi_krum(
    faulty: int, *, selected: int | None = None, neighbors: int | None = None, power: float = 2.0, p: float = 2.0
) -> Rule:
    r"""Average the m vectors with the least sums of distances to their nearest neighbors.

    .. math:: F(x_1, \dots, x_n) = \frac{1}{m} \sum_{i \in M} x_i, \qquad s_i = \sum_{j \in N_i} \|x_i - x_j\|_p^q

    with M the m workers of least s. Ties and dead workers as in `krum`.

    Args:
      faulty: f, how many workers may lie; n >= 2f + 3.
      selected: m; None for n - f - 2, the largest with a guarantee. With more than f dead there may be fewer.
      neighbors: size of N_i; None for n - f - 2.
      power: q.
      p: which norm.

    Returns:
      A `Rule` without state; a selected worker's weight is 1 / m.

    Raises:
      ValueError: as `krum`, and, when applied, for m outside [1, n].

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [1.5], [2.5], [-90.0], [4.0]])
      >>> multi_krum(faulty=1).apply(None, rows, jnp.ones(5, bool), (), None)[0].tolist()
      [1.25]

    Reference: Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries: Byzantine Tolerant
    Gradient Descent", https://arxiv.org/abs/1703.02757, 2017 (section 5).
    """
    chosen = (lambda workers: workers - faulty - 2) if selected is None else selected
    return nearest_neighbors_rule("multi_krum", faulty, neighbors=neighbors, power=power, p=p, selected=chosen)


def multi_krum_byzfl(faulty: int) -> Rule:
    """Multi-Krum as ByzFL computes it: n - f - 1 neighbors, the mean of n - f vectors, and n > 2f workers suffice.

    Args:
      faulty: f, how many workers may lie.

    Returns:
      A `Rule`, see `multi_krum`.

    Reference: ByzFL 0.0.11, https://github.com/LPD-EPFL/byzfl, 2025.
    """
    return nearest_neighbors_rule(
        "multi_krum_byzfl", faulty, spared=1, needs=(2, 1), selected=lambda workers: workers - faulty
    )
