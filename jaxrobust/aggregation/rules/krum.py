r"""Krum: the one vector whose nearest neighbors are nearest.

.. math:: s_i = \sum_{j \in N_i} \|x_i - x_j\|_p^q, \qquad F(x_1, \dots, x_n) = x_{\arg\min_i s_i}

with N_i the k workers nearest to i, itself left out. The paper has k = n - f - 2, p = 2, q = 2; libraries under the
same name differ, and choose other vectors in two cases of five:

    factory            neighbors   distance     power   result
    ----------------   ---------   ----------   -----   ------------------------------
    krum               n - f - 2   L2           2       the best
    krum_byzfl         n - f - 1   L2           2       the best
    krum_mixtailor     n - f - 2   L_p          1       the best
    krum_noniid        n - f - 2   L2           4       the sum of the m best
    multi_krum         n - f - 2   L2           2       the mean of the n - f - 2 best
    multi_krum_byzfl   n - f - 1   L2           2       the mean of the n - f best
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxrobust.aggregation.rules.distances import distances, gram, squared_distances
from jaxrobust.aggregation.rules.weighted import require, require_faulty, weighted
from jaxrobust.typing import Array, AxisName, Rule


def krum(faulty: int, *, neighbors: int | None = None, power: float = 2.0, p: float = 2.0) -> Rule:
    r"""Choose the vector with the least sum of distances to its nearest neighbors.

    .. math:: F(x_1, \dots, x_n) = x_{i^*}, \qquad i^* = \arg\min_i \sum_{j \in N_i} \|x_i - x_j\|_p^q

    The lowest number wins a tie. A dead worker counts as one of the faulty: with k of them it is `krum(faulty - k)` of
    the others.

    Args:
      faulty: f, how many workers may lie; n >= 2f + 3.
      neighbors: size of N_i; None for the paper's n - f - 2.
      power: q.
      p: which norm; 2 takes one Gram matrix, others cost a pass over all pairs' differences.

    Returns:
      A `Rule` without state; the chosen worker's weight is 1. Its bound is kappa = 6 (1 + f / (n - 2f)).

    Raises:
      ValueError: for negative faulty, neighbors below 1 or p below 1, and, when applied, for too few workers.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [1.5], [2.5], [-90.0], [4.0]])
      >>> column, _, weights = krum(faulty=1).apply(None, rows, jnp.ones(5, bool), (), None)
      >>> column.tolist(), weights.tolist()
      ([1.5], [0.0, 1.0, 0.0, 0.0, 0.0])

    Reference: Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries: Byzantine Tolerant
    Gradient Descent", https://arxiv.org/abs/1703.02757, 2017 (section 4).
    """
    return nearest_neighbors_rule("krum", faulty, neighbors=neighbors, power=power, p=p)


def krum_byzfl(faulty: int) -> Rule:
    """Krum as ByzFL computes it: n - f - 1 neighbors, and n > 2f workers suffice.

    Args:
      faulty: f, how many workers may lie.

    Returns:
      A `Rule`, see `krum`.

    Reference: ByzFL 0.0.11, https://github.com/LPD-EPFL/byzfl, 2025.
    """
    return nearest_neighbors_rule("krum_byzfl", faulty, spared=1, needs=(2, 1))


def krum_mixtailor(faulty: int, p: float = 2.0) -> Rule:
    """Krum as MixTailor's pool has it: distances in L_p, not raised to a power; n > f + 2 workers suffice.

    Args:
      faulty: f, how many workers may lie.
      p: which norm; the pool has 1 to 16.

    Returns:
      A `Rule`, see `krum`.

    Reference: Ramezani-Kebrya, Tabrizian, Faghri and Popovski, "MixTailor: Mixed Gradient Aggregation for Robust
    Learning Against Tailored Attacks", https://arxiv.org/abs/2207.07941, 2022.
    """
    return nearest_neighbors_rule("krum_mixtailor", faulty, power=1.0, p=p, needs=(1, 3))


def krum_noniid(faulty: int, selected: int = 1) -> Rule:
    """Krum as the code of the heterogeneous-data study has it: fourth powers, and a sum of the best, not their mean.

    Args:
      faulty: f, how many workers may lie; n > f + 2 workers suffice.
      selected: m, how many vectors are summed.

    Returns:
      A `Rule`, see `krum`; the weights are 1 each and sum to m.

    Reference: Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
    https://arxiv.org/abs/2006.09365, 2022.
    """
    return nearest_neighbors_rule("krum_noniid", faulty, power=4.0, selected=selected, needs=(1, 3), share=1.0)


def nearest_neighbors_rule(
    name: str,
    faulty: int,
    *,
    neighbors: int | None = None,
    spared: int = 2,
    power: float = 2.0,
    p: float = 2.0,
    selected: int | Callable[[int], int] = 1,
    needs: tuple[int, int] = (2, 3),
    share: float | None = None,
) -> Rule:
    """The family of Krum; see the table above.

    Args:
      name: what an error calls it.
      faulty: f, how many workers may lie.
      neighbors: k; None for n - f - spared.
      spared: how many of the n - f are not counted as neighbors, the worker itself among them.
      power: q.
      p: which norm.
      selected: how many of the best are joined, or a function of n.
      needs: (a, b), for the condition n >= a f + b.
      share: weight of each selected vector; None for a mean.

    Returns:
      A `Rule` without state.
    """
    require_faulty(faulty)
    if neighbors is not None and neighbors < 1:
        raise ValueError(f"neighbors must be 1 or more, got {neighbors}")
    if not p >= 1:
        raise ValueError(f"p must be at least 1, got {p}")
    factor, offset = needs

    def measure(columns: Array, axis: AxisName | None, alive: Array) -> Array:
        if p == 2:
            squares = squared_distances(gram(columns, axis, alive))
            return squares if power == 2 else squares ** (power / 2)
        return distances(columns, p, axis, alive) ** power

    def weigh(raised: Array, alive: Array) -> Array:
        workers = alive.shape[0]
        condition = f"n >= {factor if factor > 1 else ''}f + {offset}"
        require(workers, factor * faulty + offset, name, condition, faulty)
        count = workers - faulty - spared if neighbors is None else neighbors
        chosen = selected(workers) if callable(selected) else selected
        if not 1 <= chosen <= workers:
            raise ValueError(f"selected must be in [1, n] for {name}, got {chosen} with n = {workers}")
        # Dead workers beyond f leave fewer neighbors.
        count = jnp.clip(jnp.sum(alive, dtype=jnp.int32) - spared, 1, count)
        best = ranked(nearest_sums(raised, alive, count), alive) < chosen
        return best.astype(raised.dtype) * (
            1.0 / jnp.maximum(jnp.sum(best, dtype=raised.dtype), 1.0) if share is None else share
        )

    return weighted(weigh, measure, bounded=False)


def nearest_sums(apart: Array, alive: Array, count: Array | int) -> Array:
    """Each worker's sum `[n]` of its smallest entries in `[n, n]`, itself left out; infinite for the dead.

    They are `count`, or all of the others where fewer are alive.
    """
    workers = alive.shape[0]
    count = jnp.minimum(count, jnp.sum(alive, dtype=jnp.int32) - 1)
    others = jnp.where(alive[None, :] & ~jnp.eye(workers, dtype=bool), apart, jnp.inf)
    near = jnp.where(jnp.arange(workers, dtype=jnp.int32) < count, jnp.sort(others, axis=1), 0.0)
    return jnp.where(alive, jnp.sum(near, axis=1), jnp.inf)


def ranked(scores: Array, alive: Array) -> Array:
    """Each live worker's place in ascending order of scores `[n]`, lowest number first in a tie; n for the dead."""
    workers = jnp.arange(scores.shape[0])
    before = (scores[None, :] < scores[:, None]) | (
        (scores[None, :] == scores[:, None]) & (workers[None, :] < workers[:, None])
    )
    places = jnp.sum(before & alive[None, :], axis=1, dtype=jnp.int32)
    return jnp.where(alive, places, scores.shape[0])
