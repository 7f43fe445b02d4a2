"""Static clipping: before a rule joins them, no vector is longer than a radius."""

import jax.numpy as jnp

from jaxrobust.aggregation.rules.distances import largest_square_root, norms
from jaxrobust.precision import widened
from jaxrobust.typing import Array, AxisName, Key, Rule, State


def clipping(rule: Rule, *, radius: float = 2.0) -> Rule:
    r"""Give a rule the vectors shortened to a radius.

    .. math:: y_i = \min \Bigl( 1, \frac{c}{\|x_i\|} \Bigr) x_i, \qquad F(y_1, \dots, y_n)

    Args:
      rule: F.
      radius: c, in the gradients' own scale; the default is ByzFL's.

    Returns:
      A `Rule` with F's state; the weights are F's times how much was left of each vector.

    Raises:
      ValueError: for a radius that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation import rules
      >>> rows = jnp.array([[1.0, 0.0], [1e30, 0.0], [0.0, 3.0]])
      >>> clipping(rules.mean()).apply(None, rows, jnp.ones(3, bool), (), None)[0].tolist()
      [1.0, 0.6666666865348816]
    """
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")

    def apply(
        key: Key | None, columns: Array, alive: Array, state: State, axis: AxisName | None
    ) -> tuple[Array, State, Array]:
        lengths = norms(columns, axis, alive)
        return joined_shortened(rule, radius / jnp.maximum(lengths, radius), key, columns, alive, state, axis)

    return Rule(rule.init, apply)


def joined_shortened(
    rule: Rule, factors: Array, key: Key | None, columns: Array, alive: Array, state: State, axis: AxisName | None
) -> tuple[Array, State, Array]:
    """Apply a rule to the live vectors, each times a factor `[n]`; the factors go into the weights."""
    reach = largest_square_root(columns, axis)
    rows = jnp.where(alive[:, None], jnp.clip(widened(columns), -reach, reach) * factors[:, None], 0.0)
    column, state, weights = rule.apply(key, rows, alive, state, axis)
    return column.astype(columns.dtype), state, weights * factors.astype(weights.dtype)
