"""The coordinate-wise trimmed mean: the largest and smallest values of each coordinate have no say."""

import jax.numpy as jnp

from jaxrobust.aggregation.rules.coordinatewise import coordinatewise
from jaxrobust.aggregation.rules.sorting import sort_rows, total
from jaxrobust.aggregation.rules.weighted import require, require_faulty
from jaxrobust.typing import Array, Rule


def trimmed_mean(faulty: int) -> Rule:
    r"""Drop the f largest and the f smallest values of each coordinate and average the others.

    .. math:: F(x_1, \dots, x_n)_j = \frac{1}{n - 2f} \sum_{k = f + 1}^{n - f} x_{(k) j}

    with x_(k)j the k-th smallest value. A dead worker counts as one of the faulty: with k of them it is
    `trimmed_mean(faulty - k)` of the others, and the mean of the others from k = f on.

    Args:
      faulty: f, how many workers may lie; n > 2f.

    Returns:
      A `Rule` without state; a worker's weight is its share in the values kept, averaged over coordinates. Its bound is
      kappa = 6 f / (n - 2f) (1 + f / (n - 2f)).

    Raises:
      ValueError: for negative faulty, and, when applied, for too few workers.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 5.0], [2.0, 1e9], [9.0, 4.0], [4.0, 6.0]])
      >>> trimmed_mean(faulty=1).apply(None, rows, jnp.ones(4, bool), (), None)[0].tolist()
      [3.0, 5.5]

    Reference: Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", https://arxiv.org/abs/1803.01498, 2018 (definition 2).
    """
    require_faulty(faulty)

    def join(columns: Array, alive: Array) -> tuple[Array, Array, Array]:
        workers = alive.shape[0]
        require(workers, 2 * faulty + 1, "trimmed_mean", "n > 2f", faulty)
        ordered = sort_rows([jnp.where(alive[i], columns[i], jnp.inf) for i in range(workers)])
        living = jnp.sum(alive, dtype=jnp.int32)
        first = jnp.maximum(faulty - (workers - living), 0)
        stop = jnp.minimum(workers - faulty, living)
        kept = [jnp.where((first <= i) & (i < stop), ordered[i], 0.0) for i in range(workers - faulty)]
        low = ordered[0]
        for i in range(1, faulty + 1):
            low = jnp.where(i == first, ordered[i], low)
        high = ordered[workers - faulty - 1]
        return total(kept) / (stop - first).astype(columns.dtype), low, high

    return coordinatewise(join)
