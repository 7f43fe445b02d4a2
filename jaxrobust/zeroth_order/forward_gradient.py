r"""Forward gradients: exact directional derivatives along random directions, by forward-mode differentiation.

.. math:: g = \frac{1}{q} \sum_{k=1}^{q} (\nabla f(\theta)^T u_k) \, u_k, \quad E[u u^T] = I

What random directions tend to as their smoothing goes to 0, without its bias and without its rounding. The function
must be differentiable, but nothing is kept for a backward pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, Estimate, Estimator, Key, Params, PyTree, State
from jaxrobust.zeroth_order.coordinate import check_floating
from jaxrobust.zeroth_order.directions import Kind, add_scaled, check_directions, directions_of, mean_of, zeros_to_sum


def forward_gradient(directions: int = 1, kind: Kind = "gaussian") -> Estimator:
    r"""Estimate the gradient from Jacobian-vector products.

    .. math:: g = \frac{1}{q} \sum_k (\nabla f(\theta)^T u_k) \, u_k

    Args:
      directions: q, one after another.
      kind: as in `random_directions`.

    Returns:
      An `Estimator` that counts q + 1 queries: each product evaluates the function too. A direction whose value or
      slope is not finite is left out of the mean.

    Raises:
      ValueError: for directions that are not positive, or another kind; when called, for leaves that are not floats.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> found = forward_gradient(2, "orthogonal")(jax.random.key(0), lambda x: x[0] * x[1], jnp.array([2.0, 5.0]))
      >>> [round(g, 3) for g in found.gradient.tolist()], int(found.queries)
      ([5.0, 2.0], 3)

    Reference: Baydin, Pearlmutter, Syme, Wood and Torr, "Gradients without Backpropagation",
    https://arxiv.org/abs/2202.08587, 2022.
    """
    check_directions(directions, kind=kind)

    def estimate(key: Key, value_fn: Callable[[Params], tuple[Array, Any]], params: Params, state: State) -> Estimate:
        check_floating(params)
        values, aux = value_fn(params)
        direction_of = directions_of(kind, key, params, directions)

        def add(carry: tuple[PyTree, Array], number: Array) -> tuple[tuple[PyTree, Array], None]:
            total, answered = carry
            direction = direction_of(number)
            value, slope = jax.jvp(lambda point: jnp.mean(value_fn(point)[0]), (params,), (direction,))
            # Of a value that is no number, log(-1) say, a derivative may be one.
            slope = jnp.where(jnp.isfinite(value), slope, jnp.nan)
            return (add_scaled(total, slope, direction), answered + jnp.isfinite(slope).astype(jnp.float32)), None

        start = (zeros_to_sum(params), jnp.float32(0))
        (total, answered), _ = jax.lax.scan(add, start, jnp.arange(directions))
        gradient = mean_of(total, answered, params)
        return Estimate(jnp.mean(values), gradient, jnp.int32(directions + 1), aux, state)

    return Estimator(init=lambda params: (), estimate=estimate, draws=True)
