"""An estimator as a link of an optax chain: it replaces the incoming gradient, or the leaves of it that are asked for.

    optax.chain(as_transform(coordinate(), key), optax.sgd(0.1))

Leaves outside `where` pass the incoming gradient through, so that one part of a network trains by backpropagation and
another, a black box, by queries. The link stays outside `optax.masked` and `optax.partition`, and comes first: what is
before it sees another gradient. `optax.MultiSteps` and `optax.apply_if_finite` may wrap what follows it; around the
link itself the one would estimate once, from the last function alone, and the other see the incoming gradient in place
of the estimate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrobust.typing import Array, Estimator, Key, Params, PyTree, State


class TransformState(NamedTuple):
    """State of `as_transform`.

    Attributes:
      count: int32, updates done.
      key: the root of the randomness; the count is folded in.
      estimator: the estimator's state.
      queries: int32, evaluations of the function so far; it stays at 2^31 - 1 where there are more.
    """

    count: Array
    key: Key
    estimator: State
    queries: Array


def as_transform(
    estimator: Estimator, key: Key, where: PyTree | Callable[[Params], PyTree] | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Put an estimator into an optax chain.

    .. math:: g_i \leftarrow \hat g_i(f, \theta) \text{ where asked for}, \quad g_i \text{ elsewhere}

    Args:
      estimator: how the gradient is found.
      key: equal on all workers; update t draws from `fold_in(key, t)`.
      where: tree of booleans over params (or a prefix of one), or a function of params that gives it: the leaves to
        estimate. None for all.

    Returns:
      A transformation with `update(gradients, state, params, value_fn=...)`; value_fn gives a scalar or `[batch]`.

    Raises:
      ValueError: in the first update, without params or value_fn; inside `optax.masked` or `optax.partition`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxrobust.zeroth_order import coordinate
      >>> optimizer = optax.chain(as_transform(coordinate(central=True), jax.random.key(0)), optax.sgd(0.1))
      >>> params = jnp.array([1.0, -1.0])
      >>> zeros, state = jnp.zeros(2), optimizer.init(params)
      >>> updates, state = optimizer.update(zeros, state, params, value_fn=lambda x: jnp.sum(x**2))
      >>> [round(u, 3) for u in updates.tolist()], int(state[0].queries)
      ([-0.2, 0.2], 5)
    """

    def chosen(params: Params) -> PyTree:
        nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
        if any(isinstance(node, optax.MaskedNode) for node in nodes):
            raise ValueError(
                "params must be whole, got some that optax.masked or optax.partition took out: a function is evaluated "
                "at all of them; put the estimator outside, with where="
            )
        if where is None:
            return params
        mask = where(params) if callable(where) else where
        return jax.tree.map(
            lambda wanted, part: jax.tree.map(lambda leaf: leaf if wanted else None, part), mask, params
        )

    def init(params: Params) -> TransformState:
        return TransformState(jnp.int32(0), key, estimator.init(chosen(params)), jnp.int32(0))

    def update(
        updates: PyTree,
        state: State,
        params: Params | None = None,
        *,
        value_fn: Callable[[Params], Array] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, TransformState]:
        del extra
        if params is None or value_fn is None:
            missing = "params" if params is None else "value_fn"
            raise ValueError(f"{missing} must be given, got None: call update(gradients, state, params, value_fn=...)")
        found = estimator(
            jax.random.fold_in(state.key, state.count),
            lambda part: value_fn(_merged(part, params)),
            chosen(params),
            state.estimator,
        )
        most = jnp.iinfo(jnp.int32).max
        queries = jnp.where(state.queries > most - found.queries, most, state.queries + found.queries)
        after = TransformState(state.count + 1, state.key, found.state, queries)
        # Somebody without any gradient passes None for it.
        return found.gradient if updates is None and where is None else _merged(found.gradient, updates), after

    return optax.GradientTransformationExtraArgs(init, update)


def _merged(part: PyTree, whole: PyTree) -> PyTree:
    """The whole tree, with the leaves that the part has."""
    return jax.tree.map(lambda new, old: old if new is None else new, part, whole, is_leaf=lambda node: node is None)
