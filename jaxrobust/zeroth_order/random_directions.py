r"""Randomized gradient estimation (RGE): difference quotients along a few random directions.

.. math:: g = \frac{1}{q} \sum_{k=1}^{q} \frac{f(\theta + \mu u_k) - f(\theta)}{\mu} u_k, \quad u_k \sim N(0, I)

with mu the smoothing and q the number of directions. E[u u^T] = I, so that g is unbiased for the gradient of f smoothed
by a Gaussian of deviation mu. (With u on the unit sphere the same estimate carries a factor d.) As mu goes to 0,

.. math:: E \|g\|^2 = \left(1 + \frac{d + 1}{q}\right) \|\nabla f\|^2, \quad
          \cos(g, \nabla f) \approx \sqrt{\frac{q}{q + d + 1}}
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, Estimate, Estimator, Key, Params, PyTree, State
from jaxrobust.zeroth_order.coordinate import check_floating


def random_directions(directions: int = 12, smoothing: float = 5e-3) -> Estimator:
    r"""Estimate the gradient from Gaussian directions.

    .. math:: g = \frac{1}{q \mu} \sum_k (f(\theta + \mu u_k) - f(\theta)) u_k

    Args:
      directions: q, evaluated one after another, so that memory does not depend on it. The quality asked for decides:
        the cosine to the true gradient is about the root of q / (q + d + 1).
      smoothing: mu > 0. 5e-3, the default of DeepZero.

    Returns:
      An `Estimator` that makes q + 1 queries. Direction k is drawn with `fold_in(key, k)`, so that more
      directions keep the first ones.

    Raises:
      ValueError: for directions or smoothing that is not positive; when called, for leaves that are not floats.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> estimator = random_directions(directions=2000)
      >>> found = estimator(jax.random.key(0), lambda x: 3 * x[0] - x[1], jnp.array([1.0, 1.0]))
      >>> [round(g) for g in found.gradient.tolist()], int(found.queries)
      ([3, -1], 2001)

    Reference: Nesterov and Spokoiny, "Random Gradient-Free Minimization of Convex Functions",
    https://doi.org/10.1007/s10208-015-9296-2, 2017.
    """
    if directions < 1:
        raise ValueError(f"directions must be positive, got {directions}")
    if not smoothing > 0:
        raise ValueError(f"smoothing must be positive, got {smoothing}")

    def estimate(key: Key, value_fn: Callable[[Params], tuple[Array, Any]], params: Params, state: State) -> Estimate:
        check_floating(params)
        values, aux = value_fn(params)
        base = jnp.mean(values)

        def add(total: PyTree, number: Array) -> tuple[PyTree, None]:
            direction = gaussian_like(jax.random.fold_in(key, number), params)
            moved = jax.tree.map(lambda leaf, u: leaf + smoothing * u, params, direction)
            slope = (jnp.mean(value_fn(moved)[0]) - base) / smoothing
            return jax.tree.map(
                lambda sum_, u: sum_ + slope.astype(sum_.dtype) * u.astype(sum_.dtype), total, direction
            ), None

        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _sum_dtype(leaf)), params)
        total, _ = jax.lax.scan(add, start, jnp.arange(directions))
        gradient = jax.tree.map(lambda sum_, leaf: (sum_ / directions).astype(leaf.dtype), total, params)
        return Estimate(base, gradient, jnp.int32(directions + 1), aux, state)

    return Estimator(init=lambda params: (), estimate=estimate)


def gaussian_like(key: Key, params: Params) -> Params:
    """Standard normal numbers in the shapes and dtypes of params; a leaf's draw depends on its number alone."""
    leaves, structure = jax.tree.flatten(params)
    keys = (jax.random.fold_in(key, number) for number in range(len(leaves)))
    return structure.unflatten(
        [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )


def _sum_dtype(leaf: Array) -> jnp.dtype:
    # A sum of many directions in 16 bits would lose the later ones.
    return leaf.dtype if jnp.finfo(leaf.dtype).bits >= 32 else jnp.dtype(jnp.float32)
