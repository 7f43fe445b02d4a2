"""Rules that remember nothing between steps: one function makes one."""

from collections.abc import Callable

from jaxrobust.typing import Array, AxisName, Key, Rule, State


def stateless(apply: Callable[[Key | None, Array, Array, AxisName | None], tuple[Array, Array]]) -> Rule:
    """Make a `Rule` whose state is empty.

    Args:
      apply: `(key, columns [n, m], alive [n], axis) -> (column [m], weights [n])`.

    Returns:
      A `Rule`.

    Example:
      >>> import jax.numpy as jnp
      >>> first = stateless(lambda key, columns, alive, axis: (columns[0], jnp.array([1.0, 0.0])))
      >>> rows, alive = jnp.array([[3.0], [4.0]]), jnp.array([True, True])
      >>> column, state, _ = first.apply(None, rows, alive, first.init(2, 1), None)
      >>> column.tolist(), state
      ([3.0], ())
    """

    def init(workers: int, columns: int) -> State:
        del workers, columns
        return ()

    def apply_(
        key: Key | None, columns: Array, alive: Array, state: State, axis: AxisName | None
    ) -> tuple[Array, State, Array]:
        column, weights = apply(key, columns, alive, axis)
        return column, state, weights

    return Rule(init, apply_)
