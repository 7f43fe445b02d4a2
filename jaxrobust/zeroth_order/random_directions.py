r"""Randomized gradient estimation (RGE): difference quotients along a few random directions.

.. math:: g = \frac{1}{q} \sum_{k=1}^{q} \frac{f(\theta + \mu u_k) - f(\theta)}{\mu} u_k, \quad E[u u^T] = I

with mu the smoothing and q the number of directions. With Gaussian ones g is unbiased for the gradient of f smoothed by
a Gaussian of deviation mu, and as mu goes to 0,

.. math:: E \|g\|^2 = \left(1 + \frac{d + 1}{q}\right) \|\nabla f\|^2, \quad
          \cos(g, \nabla f) \approx \sqrt{\frac{q}{q + d + 1}}

Orthogonal directions have a cosine of the root of q / d instead: with d of them the estimate of a linear function is
exact.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, Estimate, Estimator, Key, Params, PyTree, State
from jaxrobust.zeroth_order.coordinate import check_floating
from jaxrobust.zeroth_order.directions import (
    Kind,
    add_scaled,
    check_directions,
    directions_of,
    mean_of,
    moved,
    zeros_to_sum,
)


def random_directions(
    directions: int = 12, smoothing: float = 5e-3, kind: Kind = "gaussian", antithetic: bool = False
) -> Estimator:
    r"""Estimate the gradient from random directions.

    .. math:: g = \frac{1}{q \mu} \sum_k (f(\theta + \mu u_k) - f(\theta)) u_k \quad \text{or, antithetic,} \quad
              g = \frac{1}{2 q \mu} \sum_k (f(\theta + \mu u_k) - f(\theta - \mu u_k)) u_k

    Args:
      directions: q, evaluated one after another, so that memory does not depend on it. The quality asked for decides:
        the cosine to the true gradient is about the root of q / (q + d + 1).
      smoothing: mu > 0. 5e-3, the default of DeepZero; too small for a network that computes in 16 bits.
      kind: `"gaussian"`, `"sphere"` (of radius root d), `"rademacher"` or `"orthogonal"`, which keeps d x q numbers.
      antithetic: take both sides of each direction: what is even in f cancels.

    Returns:
      An `Estimator` that makes q + 1 queries, 2 q + 1 antithetic ones. Direction k is drawn with `fold_in(key, k)`, so
      that more directions keep the first ones. One whose query gave no finite answer is left out of the mean.

    Raises:
      ValueError: for directions or smoothing that is not positive, or another kind; when called, for leaves that are
        not floats.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> estimator = random_directions(directions=2, kind="orthogonal")
      >>> found = estimator(jax.random.key(0), lambda x: 3 * x[0] - x[1], jnp.array([1.0, 1.0]))
      >>> [round(g, 2) for g in found.gradient.tolist()], int(found.queries)
      ([3.0, -1.0], 3)

    Reference: Nesterov and Spokoiny, "Random Gradient-Free Minimization of Convex Functions",
    https://doi.org/10.1007/s10208-015-9296-2, 2017.
    """
    check_directions(directions, smoothing, kind)

    def estimate(key: Key, value_fn: Callable[[Params], tuple[Array, Any]], params: Params, state: State) -> Estimate:
        check_floating(params)
        values, aux = value_fn(params)
        base, direction_of = jnp.mean(values), directions_of(kind, key, params, directions)

        def add(carry: tuple[PyTree, Array], number: Array) -> tuple[tuple[PyTree, Array], None]:
            total, answered = carry
            direction = direction_of(number)
            ahead = jnp.mean(value_fn(moved(params, direction, smoothing))[0])
            if antithetic:
                slope = (ahead - jnp.mean(value_fn(moved(params, direction, -smoothing))[0])) / (2 * smoothing)
            else:
                slope = (ahead - base) / smoothing
            return (add_scaled(total, slope, direction), answered + jnp.isfinite(slope).astype(jnp.float32)), None

        start = (zeros_to_sum(params), jnp.float32(0))
        (total, answered), _ = jax.lax.scan(add, start, jnp.arange(directions))
        gradient = mean_of(total, answered, params)
        return Estimate(base, gradient, jnp.int32((2 if antithetic else 1) * directions + 1), aux, state)

    return Estimator(init=lambda params: (), estimate=estimate, draws=True)
