r"""Seed replay (MeZO): a gradient that is a key and q numbers, and directions that are drawn again when needed.

.. math:: c_k = \frac{f(\theta + \mu u_k) - f(\theta - \mu u_k)}{2 \mu}, \quad g = \frac{1}{q} \sum_k c_k u_k, \quad
          u_k = u(\text{key}, k)

No direction is kept between its query and its use, so that queries may run side by side and memory does not grow with
q; and who has the key and the q slopes has the gradient: workers with one key exchange q numbers in place of d.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
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
    kept_key,
    mean_of,
    moved,
    zeros_to_sum,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Replay:
    """An estimate in short; the state of `seed_replay`.

    Attributes:
      key: of the directions.
      slopes: `[q]` float32, along each direction; NaN where a query gave no answer.
      kind: of the directions; static.
    """

    key: Key
    slopes: Array
    kind: Kind = field(default="gaussian", metadata={"static": True})


def seed_replay(
    directions: int = 1, smoothing: float = 1e-3, kind: Kind = "gaussian", chunk_size: int = 1
) -> Estimator:
    r"""Estimate the gradient from both sides of directions that are never stored.

    .. math:: g = \frac{1}{q} \sum_k \frac{f(\theta + \mu u_k) - f(\theta - \mu u_k)}{2 \mu} u_k

    Args:
      directions: q.
      smoothing: mu > 0. 1e-3, the published value for all parameters of a language model.
      kind: `"gaussian"`, `"sphere"` (of radius root d) or `"rademacher"`.
      chunk_size: directions whose queries run side by side; each needs room for params.

    Returns:
      An `Estimator` that makes 2 q + 1 queries. Its state is a `Replay`, from which `replay` makes the same gradient.

    Raises:
      ValueError: for directions, smoothing or chunk_size that is not positive, or another kind; when called, for leaves
        that are not floats, or a key of another implementation than JAX's default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> found = seed_replay(directions=3)(jax.random.key(0), lambda x: jnp.sum(x**2), jnp.array([1.0, -3.0]))
      >>> again = replay(found.state, jnp.array([1.0, -3.0]))
      >>> bool(jnp.all(again == found.gradient)), int(found.queries), found.state.slopes.shape
      (True, 7, (3,))

    Reference: Malladi, Gao, Nichani, Damian, Lee, Chen and Arora, "Fine-Tuning Language Models with Just Forward
    Passes", https://arxiv.org/abs/2305.17333, 2023.
    """
    check_directions(directions, smoothing, kind)
    _check_redrawn(kind)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")

    def init(params: Params) -> Replay:
        del params
        return Replay(jax.random.key(0), jnp.zeros(directions, jnp.float32), kind)

    def estimate(key: Key, value_fn: Callable[[Params], tuple[Array, Any]], params: Params, state: State) -> Estimate:
        del state
        check_floating(params)
        key = kept_key(key)
        values, aux = value_fn(params)
        direction_of = directions_of(kind, key, params, directions)

        def slope(number: Array) -> Array:
            direction = direction_of(number)
            sides = [jnp.mean(value_fn(moved(params, direction, side * smoothing))[0]) for side in (1.0, -1.0)]
            return ((sides[0] - sides[1]) / (2 * smoothing)).astype(jnp.float32)

        slopes = jax.lax.map(slope, jnp.arange(directions), batch_size=min(chunk_size, directions))
        found = Replay(key, slopes, kind)
        return Estimate(jnp.mean(values), replay(found, params), jnp.int32(2 * directions + 1), aux, found)

    return Estimator(init=init, estimate=estimate, draws=True)


def replay(found: Replay, params: Params) -> PyTree:
    """The gradient that a key and slopes stand for.

    Args:
      found: the state after an estimate, or its key with slopes that are the mean over workers.
      params: for shapes and dtypes.

    Returns:
      A pytree like params.

    Raises:
      ValueError: for a kind that is not drawn anew.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> found = Replay(jax.random.key(0), jnp.array([0.0, 0.0]))
      >>> replay(found, jnp.ones(3)).tolist()
      [0.0, 0.0, 0.0]
    """
    _check_redrawn(found.kind)
    count = found.slopes.shape[0]
    direction_of = directions_of(found.kind, found.key, params, count)

    def add(total: PyTree, number: Array) -> tuple[PyTree, None]:
        return add_scaled(total, found.slopes[number], direction_of(number)), None

    total, _ = jax.lax.scan(add, zeros_to_sum(params), jnp.arange(count))
    return mean_of(total, jnp.sum(jnp.isfinite(found.slopes), dtype=jnp.float32), params)


def _check_redrawn(kind: Kind) -> None:
    if kind == "orthogonal":
        raise ValueError("kind must be one that is drawn anew, got 'orthogonal': take random_directions for it")
