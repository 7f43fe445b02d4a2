r"""Centered clipping: from where the last step ended, no worker may pull further than a radius.

The previous result is one more row of the Gram matrix, so the iteration runs on n + 1 weights and touches no vector.
"""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.rules.distances import gram_with, largest_square_root, squared_distances_to
from jaxrobust.aggregation.rules.geometric_median import squares_to
from jaxrobust.aggregation.rules.weighted import weighted_sum
from jaxrobust.precision import at_least_float32, widened
from jaxrobust.typing import Array, AxisName, Key, Rule, State


def centered_clipping(radius: float = 100.0, *, steps: int = 1) -> Rule:
    r"""Move from the previous result by the mean of clipped differences.

    .. math:: v \leftarrow v + \frac{1}{n} \sum_i (x_i - v) \min \Bigl( 1, \frac{\tau}{\|x_i - v\|} \Bigr)

    Args:
      radius: tau, in the gradients' own scale: a faulty worker moves the result by at most tau / n in a step. The
        default is ByzFL's.
      steps: how often v moves.

    Returns:
      A `Rule` whose state is the previous result, `[columns]`, zeros at first. A worker's weight is its share in the
      result; what is missing to 1 is the previous result's. The dead are left out; with nobody alive the result is NaN
      and the state stays.

    Raises:
      ValueError: for a radius that is not positive and for steps below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> rule, rows = centered_clipping(1.0), jnp.array([[0.5], [0.5], [0.5], [1e30]])
      >>> column, state, _ = rule.apply(None, rows, jnp.ones(4, bool), rule.init(4, 1), None)
      >>> column.tolist(), state.tolist()
      ([0.625], [0.625])

    Reference: Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust Optimization",
    https://arxiv.org/abs/2012.10333, 2021 (algorithm 2).
    """
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")

    def init(workers: int, columns: int) -> State:
        del workers
        return jnp.zeros(columns)

    def apply(
        key: Key | None, columns: Array, alive: Array, state: State, axis: AxisName | None
    ) -> tuple[Array, State, Array]:
        del key
        count = alive.shape[0]
        previous = state.astype(at_least_float32(columns.dtype))
        living = jnp.maximum(jnp.sum(alive), 1).astype(previous.dtype)
        start = jnp.zeros(count + 1, previous.dtype).at[count].set(1.0)

        def move(weights: Array, squares: Array) -> Array:
            clipped = jnp.where(alive, radius / jnp.sqrt(jnp.maximum(squares, radius**2)), 0.0) / living
            return weights * (1.0 - jnp.sum(clipped)) + jnp.pad(clipped, (0, 1))

        # The first step asks only how far each vector is from the previous result: one pass, and no Gram matrix.
        weights = move(start, squared_distances_to(columns, previous, axis, alive))
        if steps > 1:
            products = gram_with(columns, previous, axis, alive)
            weights = jax.lax.fori_loop(
                1, steps, lambda _, weights: move(weights, squares_to(products, weights)[:count]), weights
            )
        reach = largest_square_root(columns, axis)
        moved = weighted_sum(weights[:count], widened(columns), alive, reach) + weights[count] * previous
        kept = jnp.where(jnp.any(alive), moved, previous).astype(state.dtype)
        return moved.astype(columns.dtype), kept, weights[:count]

    return Rule(init, apply)
