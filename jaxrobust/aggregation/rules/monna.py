"""MoNNA: the mean of the vectors nearest to one that is trusted."""

import jax.numpy as jnp

from jaxrobust.aggregation.rules.distances import squared_distances_to
from jaxrobust.aggregation.rules.krum import ranked
from jaxrobust.aggregation.rules.weighted import require, require_faulty, weighted
from jaxrobust.typing import Array, AxisName, Rule


def monna(faulty: int, *, trusted: int = 0) -> Rule:
    r"""Average the n - f vectors nearest to a trusted worker's, its own among them.

    .. math:: F(x_1, \dots, x_n) = \frac{1}{n - f} \sum_{i \in N} x_i

    with N the n - f workers nearest to the trusted one. In the paper every worker trusts itself; here one worker is
    trusted by all. A dead worker counts as one of the faulty.

    Args:
      faulty: f, how many workers may lie; n > 2f.
      trusted: the number of the trusted worker.

    Returns:
      A `Rule` without state; a chosen worker's weight is 1 / (n - f). While the trusted worker is dead the result is
      NaN: there is nobody else to trust.

    Raises:
      ValueError: for negative arguments, and, when applied, for too few workers.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [-90.0], [3.0]])
      >>> monna(faulty=1).apply(None, rows, jnp.ones(4, bool), (), None)[0].tolist()
      [2.0]

    Reference: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot and Stephan, "Robust Collaborative Learning with Linear
    Gradient Overhead", https://arxiv.org/abs/2209.10931, 2023 (algorithm 1).
    """
    require_faulty(faulty)
    if trusted < 0:
        raise ValueError(f"trusted must be 0 or more, got {trusted}")

    def measure(columns: Array, axis: AxisName | None, alive: Array) -> Array:
        require(alive.shape[0], max(2 * faulty, trusted) + 1, "monna", "n > 2f and n > trusted", faulty)
        return squared_distances_to(columns, columns[trusted], axis, alive)

    def weigh(squares: Array, alive: Array) -> Array:
        apart = squares.at[trusted].set(-1.0)
        near = (ranked(apart, alive) < alive.shape[0] - faulty).astype(squares.dtype)
        return jnp.where(alive[trusted], near / jnp.sum(near), jnp.nan)

    return weighted(weigh, measure, bounded=False)
