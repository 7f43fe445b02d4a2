r"""The geometric median: the point with the least sum of distances to the workers' vectors.

Weiszfeld's iteration stays within weighted sums of the vectors, so it runs on weights: with z = sum_j w_j x_j

.. math:: \|x_i - z\|^2 = G_{ii} - 2 (G w)_i + w^\top G w,

and no step touches a vector.
"""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.rules.distances import gram, gram_with, squared_distances
from jaxrobust.aggregation.rules.weighted import weighted
from jaxrobust.precision import at_least_float32
from jaxrobust.typing import Array, AxisName, Rule


def geometric_median(*, smoothing: float = 1e-6, steps: int = 100, from_origin: bool = False) -> Rule:
    r"""Find the geometric median by smoothed Weiszfeld steps.

    .. math:: F(x_1, \dots, x_n) \approx \arg\min_z \sum_i \|x_i - z\|, \qquad
        z \leftarrow \frac{\sum_i x_i / \max(\nu, \|x_i - z\|)}{\sum_i 1 / \max(\nu, \|x_i - z\|)}

    The first z weighs each vector by the inverse of its median distance to the others, so that no far vector slows the
    iteration down: the published ones start from the mean or from the origin.

    Args:
      smoothing: nu, a distance below which vectors count alike.
      steps: how often z moves; each costs n^2 operations, whatever the dimension.
      from_origin: start from z = 0, as ByzFL does (it takes 3 steps with nu = 0.1). Neither translation nor far rows
        are then undone before many steps.

    Returns:
      A `Rule` without state; for n > 2f its bound is kappa = 4 (1 + f / (n - 2f))^2. The dead are left out.

    Raises:
      ValueError: for smoothing that is not positive and for steps below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0], [1e9, 0.0]])
      >>> column, _, _ = geometric_median().apply(None, rows, jnp.array([True, True, True, True, False]), (), None)
      >>> [round(value, 3) + 0.0 for value in column.tolist()]
      [1.0, 0.0]

    Reference: Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning",
    https://arxiv.org/abs/1912.13445, 2019 (algorithm 2).
    """
    if not smoothing > 0:
        raise ValueError(f"smoothing must be positive, got {smoothing}")
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")

    def measure(columns: Array, axis: AxisName | None, alive: Array) -> Array:
        if from_origin:
            return gram_with(columns, jnp.zeros(columns.shape[1], at_least_float32(columns.dtype)), axis, alive)
        return gram(columns, axis, alive)

    def weigh(products: Array, alive: Array) -> Array:
        count = alive.shape[0]

        def inverse(squares: Array) -> Array:
            # Cut before the root, whose slope at 0 is infinite.
            apart = jnp.sqrt(jnp.maximum(squares[:count], smoothing**2))
            weights = jnp.where(alive, 1.0 / apart, 0.0)
            weights = weights / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)
            return jnp.pad(weights, (0, products.shape[0] - count))

        def move(_: Array, weights: Array) -> Array:
            return inverse(squares_to(products, weights))

        if from_origin:
            first = jnp.zeros(count + 1, products.dtype).at[count].set(1.0)
        else:
            ascending = jnp.sort(jnp.where(alive, squared_distances(products), jnp.inf), axis=1)
            first = inverse(ascending[:, jnp.sum(alive, dtype=jnp.int32) // 2])
        return jax.lax.fori_loop(0, steps, move, first)[:count]

    return weighted(weigh, measure)


def squares_to(products: Array, weights: Array) -> Array:
    """Squared distances `[n]` of the vectors behind a Gram matrix to their weighted sum; weights sum to 1."""
    along = jnp.sum(products * weights, axis=1)
    return jnp.diagonal(products) - 2 * along + jnp.sum(along * weights)
