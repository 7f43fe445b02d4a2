"""Bulyan: select vectors one by one, then join the selected ones coordinate by coordinate."""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.rules.distances import gram, squared_distances, squared_distances_to
from jaxrobust.aggregation.rules.krum import nearest_sums
from jaxrobust.aggregation.rules.meamed import around_median
from jaxrobust.aggregation.rules.stateless import stateless
from jaxrobust.aggregation.rules.weighted import require, require_faulty
from jaxrobust.typing import Array, AxisName, Key, Rule


def bulyan(faulty: int, *, power: float = 2.0, selector: Rule | None = None, aggregator: Rule | None = None) -> Rule:
    r"""Select n - 2f vectors, then average the values of each coordinate that are nearest to their median.

    .. math:: F(x_1, \dots, x_n)_j = \frac{1}{n - 4f} \sum_{i \in N_j} x_{ij}, \qquad N_j \subset S, \quad |S| = n - 2f

    S grows by the vector that Krum chooses of those not yet in it, with n' - f - 2 neighbors (1 at least) among the n'
    that remain; N_j are the n - 4f workers of S nearest to the median of S in coordinate j. Lowest numbers win ties.
    With dead workers, at most f, n - 2f of the others are selected still.

    Args:
      faulty: f, how many workers may lie; n >= 4f + 3.
      power: to which power Krum raises distances.
      selector: a rule without state nor key in place of Krum: S grows by the vector nearest to its result.
      aggregator: a rule without state nor key in place of the mean around the median; it is given S alone, in the order
        of selection.

    Returns:
      A `Rule` without state; a worker's weight is its share in the result, 0 for those not selected.

    Raises:
      ValueError: for negative faulty, and, when applied, for too few workers.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [-90.0], [3.0], [4.0], [5.0], [6.0]])
      >>> bulyan(faulty=1).apply(None, rows, jnp.ones(7, bool), (), None)[0].tolist()
      [3.0]

    Reference: El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium",
    https://arxiv.org/abs/1802.07927, 2018 (section 4).
    """
    require_faulty(faulty)
    join = around_median(lambda selected: selected - 2 * faulty) if aggregator is None else aggregator

    def apply(key: Key | None, columns: Array, alive: Array, axis: AxisName | None) -> tuple[Array, Array]:
        del key
        workers = alive.shape[0]
        require(workers, 4 * faulty + 3, "bulyan", "n >= 4f + 3", faulty)
        count = workers - 2 * faulty
        if selector is None:
            raised = squared_distances(gram(columns, axis, alive)) ** (power / 2)

            def scores(remaining: Array, step: Array) -> Array:
                return nearest_sums(raised, remaining, jnp.maximum(workers - faulty - 2 - step, 1))
        else:

            def scores(remaining: Array, step: Array) -> Array:
                del step
                column, _, _ = selector.apply(None, columns, remaining, selector.init(*columns.shape), axis)
                return jnp.where(remaining, squared_distances_to(columns, column, axis, alive), jnp.inf)

        def select(remaining: Array, step: Array) -> tuple[Array, tuple[Array, Array]]:
            chosen = jnp.argmin(scores(remaining, step)).astype(jnp.int32)
            return remaining.at[chosen].set(False), (chosen, jnp.any(remaining))

        _, (order, valid) = jax.lax.scan(select, alive, jnp.arange(count, dtype=jnp.int32))
        chosen = columns[order]
        column, _, weights = join.apply(None, chosen, valid, join.init(*chosen.shape), axis)
        return column, jnp.zeros(workers, weights.dtype).at[order].add(jnp.where(valid, weights, 0.0))

    return stateless(apply)
