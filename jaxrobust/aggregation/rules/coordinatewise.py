"""Rules that see each coordinate by itself: one function from sorted values to a value makes one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.rules.distances import summed
from jaxrobust.aggregation.rules.sorting import by_itself, total
from jaxrobust.aggregation.rules.stateless import stateless
from jaxrobust.precision import widened
from jaxrobust.typing import Array, AxisName, Key, Rule


def coordinatewise(join: Callable[[Array, Array], tuple[Array, Array, Array]]) -> Rule:
    """Make a `Rule` that joins each column by itself, from values within a range of its own.

    Args:
      join: `(columns [n, m], alive [n]) -> (column [m], low [m], high [m])`: the result, and between which values
        (both included) those lie that it was made of. Columns are float32 or wider.

    Returns:
      A `Rule` without state. A worker's weight is the mean over coordinates of its share in the values that were used:
      the weights of the living sum to 1. With nobody alive the result is NaN and the weights are 0.

    Example:
      >>> import jax.numpy as jnp
      >>> smallest = coordinatewise(lambda columns, alive: (jnp.min(columns, 0),) * 3)
      >>> rows, alive = jnp.array([[1.0, 7.0], [2.0, 2.0]]), jnp.array([True, True])
      >>> column, _, weights = smallest.apply(None, rows, alive, (), None)
      >>> column.tolist(), weights.tolist()
      ([1.0, 2.0], [0.5, 0.5])
    """

    def apply(key: Key | None, columns: Array, alive: Array, axis: AxisName | None) -> tuple[Array, Array]:
        del key
        rows = widened(columns)
        column, _, _ = joined(rows, alive)
        column = jnp.where(jnp.any(alive), column, jnp.nan).astype(columns.dtype)
        # Where nobody reads the weights, XLA leaves out all that only they need.
        _, low, high = by_itself(joined, alive, rows, alive)
        return column, shares(rows, alive, low, high, axis)

    joined = jax.jit(join)
    return stateless(apply)


def shares(columns: Array, alive: Array, low: Array, high: Array, axis: AxisName | None) -> Array:
    """The mean over coordinates of each worker's share in the values from low to high.

    Args:
      columns: `[n, m]`, a slice of every worker's vector.
      alive: `[n]`.
      low: `[m]`, the least value that was used.
      high: `[m]`, the largest.
      axis: the axis over which the vectors are split, None where they are whole.

    Returns:
      `[n]`, equal everywhere; 0 for the dead.
    """

    def each(rows: Array, low: Array, high: Array) -> tuple[Array]:
        """One over how many values were used."""
        used = [alive[i] & (rows[i] >= low) & (rows[i] <= high) for i in range(alive.shape[0])]
        return (1.0 / jnp.maximum(total([one.astype(rows.dtype) for one in used]), 1.0),)

    (share,) = by_itself(each, alive, columns, low, high)
    used = alive[:, None] & (columns >= low) & (columns <= high)
    sums = summed(jnp.sum(jnp.where(used, share, 0.0), axis=1), axis)
    return sums / jnp.maximum(jnp.sum(sums), jnp.finfo(sums.dtype).tiny)
