r"""Low-rank directions: a matrix is moved along the product of two thin ones, as its gradient often is one.

.. math:: u = U V^T / \sqrt{r}, \quad U \in R^{m \times r}, \; V \in R^{n \times r}, \quad U_{ij}, V_{ij} \sim N(0, 1)

so that E[u u^T] = I with m + n numbers drawn for each rank in place of m n. With V kept for some steps, the steps
between stay in one subspace of rank r, and a momentum over them fits into m r numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, Estimate, Estimator, Key, Params, PyTree, State
from jaxrobust.zeroth_order.coordinate import check_floating
from jaxrobust.zeroth_order.directions import add_scaled, check_directions, kept_key, mean_of, moved, zeros_to_sum


class LowRankState(NamedTuple):
    """State of `low_rank`.

    Attributes:
      count: int32, estimates done.
      key: of the right factors V.
    """

    count: Array
    key: Key


def low_rank(directions: int = 1, rank: int = 2, smoothing: float = 1e-3, interval: int = 1) -> Estimator:
    r"""Estimate the gradient from both sides of directions of low rank.

    .. math:: g = \frac{1}{q} \sum_k \frac{f(\theta + \mu u_k) - f(\theta - \mu u_k)}{2 \mu} u_k, \quad
              u_k = U_k V_k^T / \sqrt{r}

    Leaves of one axis or none have Gaussian directions; one of several axes is a matrix of its last axis by the others.

    Args:
      directions: q, one after another.
      rank: r.
      smoothing: mu > 0. 1e-3, the published value.
      interval: estimates for which V is kept; 50 to 100 as published. With more than 1, single estimates are unbiased
        within V's subspace alone.

    Returns:
      An `Estimator` that makes 2 q + 1 queries; its state is a `LowRankState`.

    Raises:
      ValueError: for a number that is not positive; when called, for leaves that are not floats, or a key of another
        implementation than JAX's default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> found = low_rank(rank=1)(jax.random.key(0), lambda w: jnp.sum(w), jnp.zeros((4, 3)))
      >>> int(jnp.linalg.matrix_rank(found.gradient)), int(found.queries)
      (1, 3)

    Reference: Chen, Zhang, Wang, Hu and Huang, "Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank
    Structures", https://arxiv.org/abs/2410.07698, 2025.
    """
    check_directions(directions, smoothing)
    for name, number in {"rank": rank, "interval": interval}.items():
        if number < 1:
            raise ValueError(f"{name} must be positive, got {number}")

    def init(params: Params) -> LowRankState:
        del params
        return LowRankState(jnp.int32(0), jax.random.key(0))

    def estimate(key: Key, value_fn: Callable[[Params], tuple[Array, Any]], params: Params, state: State) -> Estimate:
        check_floating(params)
        key = kept_key(key)
        values, aux = value_fn(params)
        renew = state.count % interval == 0
        right = jax.tree.map(lambda new, old: jnp.where(renew, new, old), key, state.key)

        def add(carry: tuple[PyTree, Array], number: Array) -> tuple[tuple[PyTree, Array], None]:
            total, answered = carry
            direction = _direction(jax.random.fold_in(key, number), jax.random.fold_in(right, number), params, rank)
            sides = [jnp.mean(value_fn(moved(params, direction, side * smoothing))[0]) for side in (1.0, -1.0)]
            slope = (sides[0] - sides[1]) / (2 * smoothing)
            return (add_scaled(total, slope, direction), answered + jnp.isfinite(slope).astype(jnp.float32)), None

        start = (zeros_to_sum(params), jnp.float32(0))
        (total, answered), _ = jax.lax.scan(add, start, jnp.arange(directions))
        gradient = mean_of(total, answered, params)
        after = LowRankState(state.count + 1, right)
        return Estimate(jnp.mean(values), gradient, jnp.int32(2 * directions + 1), aux, after)

    return Estimator(init=init, estimate=estimate, draws=True)


def _direction(key: Key, right: Key, params: Params, rank: int) -> Params:
    leaves, structure = jax.tree.flatten(params)

    def of(number: int, leaf: Array) -> Array:
        left, other = jax.random.fold_in(key, 2 * number), jax.random.fold_in(right, 2 * number + 1)
        if leaf.ndim < 2:
            return jax.random.normal(left, leaf.shape, leaf.dtype)
        columns = leaf.shape[-1]
        rows = leaf.size // max(columns, 1)
        tall = jax.random.normal(left, (rows, rank), jnp.float32)
        wide = jax.random.normal(other, (columns, rank), jnp.float32)
        return (tall @ wide.T / jnp.sqrt(jnp.float32(rank))).reshape(leaf.shape).astype(leaf.dtype)

    return structure.unflatten([of(number, leaf) for number, leaf in enumerate(leaves)])
