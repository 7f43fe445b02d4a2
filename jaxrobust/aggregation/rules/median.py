"""The coordinate-wise median of the live workers: bounded by honest values while fewer than half are faulty."""

from jaxrobust.aggregation.rules.coordinatewise import coordinatewise
from jaxrobust.aggregation.rules.sorting import middle
from jaxrobust.typing import Array, Rule


def median(*, lower: bool = False) -> Rule:
    r"""Take the middle value of each coordinate.

    .. math:: F(x_1, \dots, x_n)_j = \tfrac12 ( x_{(\lceil m / 2 \rceil) j} + x_{(\lfloor m / 2 \rfloor + 1) j} )

    with x_(k)j the k-th smallest of the m live workers' values: the middle one, or the mean of the middle two.

    Args:
      lower: take the lower of the middle two, as PyTorch does, not their mean.

    Returns:
      A `Rule` without state; a worker's weight is its share in the middle values, averaged over coordinates. With
      nobody alive the result is NaN. For n > 2f its bound is kappa = 4 (1 + f / (n - 2f))^2.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 5.0], [2.0, 1e9], [9.0, 4.0], [3.0, 6.0]])
      >>> column, _, weights = median().apply(None, rows, jnp.array([True, True, True, True]), (), None)
      >>> column.tolist(), weights.tolist()
      ([2.5, 5.5], [0.25, 0.25, 0.0, 0.5])

    Reference: Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", https://arxiv.org/abs/1803.01498, 2018 (definition 1).
    """

    def join(columns: Array, alive: Array) -> tuple[Array, Array, Array]:
        low, high = middle(columns, alive)
        high = low if lower else high
        return 0.5 * low + 0.5 * high, low, high

    return coordinatewise(join)
