"""The mean of the live workers: exact, and at the mercy of one hostile worker."""

import jax.numpy as jnp

from jaxrobust.aggregation.rules.weighted import weighted
from jaxrobust.precision import at_least_float32
from jaxrobust.typing import Array, AxisName, Rule


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


def _nothing(columns: Array, axis: AxisName | None, alive: Array) -> Array:
    """What the mean asks of the vectors: only in which dtype to count."""
    del axis, alive
    return jnp.zeros((), at_least_float32(columns.dtype))


def _equal(zero: Array, alive: Array) -> Array:
    return alive.astype(zero.dtype) / jnp.maximum(jnp.sum(alive), 1).astype(zero.dtype)


_MEAN = weighted(_equal, _nothing, bounded=False)
