"""Rules that weigh whole vectors: one function from what lies between the workers to their shares makes one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.rules.distances import gram, largest_square_root
from jaxrobust.aggregation.rules.sorting import total
from jaxrobust.aggregation.rules.stateless import stateless
from jaxrobust.typing import Array, AxisName, Key, Rule


def _gram(columns: Array, axis: AxisName | None, alive: Array) -> Array:
    return gram(columns, axis, alive)


def weighted(
    weigh: Callable[[Array, Array], Array],
    measure: Callable[[Array, AxisName | None, Array], Array] = _gram,
    bounded: bool = True,
) -> Rule:
    r"""Make a `Rule` that is a weighted sum of the workers' vectors.

    .. math:: F(x_1, \dots, x_n) = \sum_i w_i x_i, \qquad w = \mathrm{weigh}(G, \mathrm{alive})

    Args:
      weigh: `(measured, alive [n]) -> weights [n]`, 0 for the dead; it sees no vector.
      measure: `(columns [n, m], axis, alive [n]) -> measured`, equal everywhere; the Gram matrix `[n, n]`.
      bounded: whether values beyond the reach of `gram` are summed as if they lay there. A small weight that was found
        for such a row would otherwise not be small enough.

    Returns:
      A `Rule` without state. With nobody alive the result is NaN and the weights are 0.

    Example:
      >>> import jax.numpy as jnp
      >>> longest = weighted(lambda products, alive: (jnp.arange(3) == jnp.argmax(jnp.diag(products))) * 1.0)
      >>> rows, alive = jnp.array([[1.0], [7.0], [2.0]]), jnp.array([True, True, True])
      >>> longest.apply(None, rows, alive, (), None)[0].tolist()
      [7.0]
    """

    def apply(key: Key | None, columns: Array, alive: Array, axis: AxisName | None) -> tuple[Array, Array]:
        del key
        weights = jnp.where(alive, weigh(measure(columns, axis, alive), alive), 0.0)
        reach = largest_square_root(columns, axis) if bounded else None
        return weighted_sum(weights, columns, alive, reach), weights

    return stateless(apply)


def weighted_sum(weights: Array, columns: Array, alive: Array, reach: float | None = None) -> Array:
    """Sum the live rows, each times its weight, in float32 or wider.

    Args:
      weights: `[n]`.
      columns: `[n, m]`; a dead row may hold anything.
      alive: `[n]`.
      reach: values beyond it count as if they lay there; None for any value.

    Returns:
      `[m]`, with the columns' dtype; NaN where nobody is alive.
    """

    def product(columns: Array) -> Array:
        return jnp.matmul(weights, columns.astype(weights.dtype), precision=jax.lax.Precision.HIGHEST)

    def chosen(columns: Array) -> Array:
        rows = [jnp.where(alive[i], columns[i].astype(weights.dtype), 0.0) for i in range(columns.shape[0])]
        rows = rows if reach is None else [jnp.clip(row, -reach, reach) for row in rows]
        return total([row * weights[i] for i, row in enumerate(rows)])

    def soonest(columns: Array) -> Array:
        # A product reads at the speed of memory, but leaves nothing out.
        return chosen(columns) if reach is not None else jax.lax.cond(jnp.all(alive), product, chosen, columns)

    def reduced(columns: Array) -> Array:
        # Hundreds of rows one by one would each fill a TPU's tile; and a product of narrow parts overflows there.
        rows = jnp.where(alive[:, None], columns.astype(weights.dtype), 0.0)
        rows = rows if reach is None else jnp.clip(rows, -reach, reach)
        return jnp.sum(rows * weights[:, None], axis=0)

    summed = jax.lax.platform_dependent(columns, cpu=soonest, default=reduced)
    return jnp.where(jnp.any(alive), summed, jnp.nan).astype(columns.dtype)


def require(workers: int, least: int, rule: str, condition: str, faulty: int) -> None:
    """Refuse too few workers for a rule.

    Raises:
      ValueError: for fewer workers than `least`.
    """
    if workers < least:
        raise ValueError(f"{rule} needs {condition} workers, got n = {workers} with f = {faulty}")


def require_faulty(faulty: int) -> None:
    """Refuse a negative number of faulty workers.

    Raises:
      ValueError: for a negative number.
    """
    if faulty < 0:
        raise ValueError(f"faulty must be 0 or more, got {faulty}")
