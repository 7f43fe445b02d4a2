"""Meamed, the mean around the median: of each coordinate, the values nearest to the middle."""

from collections.abc import Callable

import jax.numpy as jnp

from jaxrobust.aggregation.rules.coordinatewise import coordinatewise
from jaxrobust.aggregation.rules.sorting import sort_rows, total
from jaxrobust.aggregation.rules.weighted import require, require_faulty
from jaxrobust.typing import Array, Rule


def meamed(faulty: int) -> Rule:
    r"""Average the n - f values of each coordinate that are nearest to its median.

    .. math:: F(x_1, \dots, x_n)_j = \frac{1}{n - f} \sum_{i \in N_j} x_{ij}

    with N_j the n - f workers whose values lie nearest to the median of the live workers' values. Of two values equally
    far, on either side, the lower one is taken. A dead worker counts as one of the faulty.

    Args:
      faulty: f, how many workers may lie; n > 2f.

    Returns:
      A `Rule` without state; a worker's weight is its share in the values kept, averaged over coordinates.

    Raises:
      ValueError: for negative faulty, and, when applied, for too few workers.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [9.0], [4.5]])
      >>> meamed(faulty=1).apply(None, rows, jnp.ones(4, bool), (), None)[0].tolist()
      [2.5]

    Reference: Xie, Koyejo and Gupta, "Generalized Byzantine-tolerant SGD", https://arxiv.org/abs/1802.10116, 2018
    (definition 8).
    """
    require_faulty(faulty)

    def width(workers: int) -> int:
        require(workers, 2 * faulty + 1, "meamed", "n > 2f", faulty)
        return workers - faulty

    return around_median(width)


def comed_mixtailor(nearest: int = 1) -> Rule:
    """The coordinate median of MixTailor's pool: the mean of the values nearest to the lower median.

    Args:
      nearest: how many values, out of n.

    Returns:
      A `Rule`, see `meamed`; with one value it is `median(lower=True)`.

    Raises:
      ValueError: for nearest below 1.

    Reference: Ramezani-Kebrya, Tabrizian, Faghri and Popovski, "MixTailor: Mixed Gradient Aggregation for Robust
    Learning Against Tailored Attacks", https://arxiv.org/abs/2207.07941, 2022.
    """
    if nearest < 1:
        raise ValueError(f"nearest must be 1 or more, got {nearest}")
    return around_median(lambda workers: min(nearest, workers), lower=True)


def around_median(width: Callable[[int], int], *, lower: bool = False) -> Rule:
    """The mean of the values nearest to the median.

    In sorted order they are neighbors, from some first one on. That one moves up while the value that would come in
    lies nearer than the one that would go, so no second sort is needed, and no difference of large sums.

    Args:
      width: `(n) -> how many values`; all the living where there are fewer.
      lower: the lower of the middle two is the median, not their mean.

    Returns:
      A `Rule` without state.
    """

    def join(columns: Array, alive: Array) -> tuple[Array, Array, Array]:
        workers = alive.shape[0]
        size = width(workers)
        ordered = sort_rows([jnp.where(alive[i], columns[i], jnp.inf) for i in range(workers)])
        living = jnp.sum(alive, dtype=jnp.int32)
        low, high = _at(ordered, (living - 1) // 2), _at(ordered, living // 2)
        middle = low if lower else 0.5 * low + 0.5 * high
        moves = [ordered[i + size] - middle < middle - ordered[i] for i in range(workers - size)]
        kept, least, largest = [], ordered[0], ordered[size - 1]
        for i, row in enumerate(ordered):
            inside = i < living
            if i >= size:
                inside &= moves[i - size]
                largest = jnp.where(moves[i - size], row, largest)
            if i < workers - size:
                inside &= ~moves[i]
                least = jnp.where(moves[i], ordered[i + 1], least)
            kept.append(jnp.where(inside, row, 0.0))
        return total(kept) / jnp.minimum(living, size).astype(columns.dtype), least, largest

    return coordinatewise(join)


def _at(rows: list[Array], index: Array) -> Array:
    """The row at an index of at most half their number."""
    found = rows[0]
    for i in range(1, len(rows) // 2 + 1):
        found = jnp.where(i == index, rows[min(i, len(rows) - 1)], found)
    return found
