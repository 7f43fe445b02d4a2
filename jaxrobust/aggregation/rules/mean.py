"""The mean of the live workers: exact, and at the mercy of one hostile worker."""

import jax.numpy as jnp

from jaxrobust.aggregation.rules.stateless import stateless
from jaxrobust.typing import Array, AxisName, Key, Rule


def mean() -> Rule:
    r"""Average the live workers' vectors.

    .. math:: F(x_1, \dots, x_n) = \frac{1}{|A|} \sum_{i \in A} x_i

    with A the workers that are alive.

    Returns:
      A `Rule` without state, always the same one, so that a reduction can tell a mean; the weights are 1 / |A|. With
      nobody alive the result is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> rows, alive = jnp.array([[1.0, 2.0], [3.0, 4.0], [jnp.nan, 0.0]]), jnp.array([True, True, False])
      >>> column, _, weights = mean().apply(None, rows, alive, (), None)
      >>> column.tolist(), weights.tolist()
      ([2.0, 3.0], [0.5, 0.5, 0.0])
    """
    return _MEAN


def _apply(key: Key | None, columns: Array, alive: Array, axis: AxisName | None) -> tuple[Array, Array]:
    del key, axis
    living = jnp.sum(alive).astype(columns.dtype)
    total = jnp.sum(jnp.where(alive[:, None], columns, 0.0), axis=0)
    return total / living, alive.astype(columns.dtype) / living


_MEAN = stateless(_apply)
