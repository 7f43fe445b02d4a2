"""Reductions as optax's aggregators, which take all workers' gradients stacked on one device."""

from typing import Any

import jax
import jax.numpy as jnp
from optax.experimental import aggregating

from jaxrobust.aggregation import axes
from jaxrobust.aggregation.reduction import ReduceState, Reduction
from jaxrobust.typing import Params, PyTree, State


def as_aggregator(reduce: Reduction, workers: int) -> aggregating.Aggregator:
    """Play a reduction's workers on one device, for `optax.experimental.aggregating.process`.

    Args:
      reduce: a reduction over one axis, any name.
      workers: n.

    Returns:
      An `optax.experimental.aggregating.Aggregator`: its `update` takes leaves `[n, ...]` and gives leaves `[...]`. Its
      state holds what is shared once, and what is each worker's own on a leading axis of workers.

    Raises:
      ValueError: for fewer than one worker or a reduction over several axes; in `update` for leaves of another number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation import all_reduce, rules
      >>> aggregator = as_aggregator(all_reduce("worker", rule=rules.median()), workers=3)
      >>> aggregator.update(jnp.array([1.0, 2.0, 100.0]), aggregator.init(jnp.array(0.0)))[0].tolist()
      2.0

    Reference: DeepMind, "Optax", https://optax.readthedocs.io, `optax.experimental.aggregating`.
    """
    if workers < 1:
        raise ValueError(f"workers must be positive, got {workers}")
    if len(axes.names(reduce.axis)) > 1:
        raise ValueError(f"reduce must be over one axis, got {reduce.axis}")
    (name,) = axes.names(reduce.axis)

    def init(params: Params) -> ReduceState:
        state: Any = reduce.init(params)
        shared, own = state
        return ReduceState(shared, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (workers, *jnp.shape(leaf))), own))

    def update(per_elt_updates: PyTree, state: State, params: Params | None = None, **extra_args: Any) -> Any:
        del params, extra_args
        counts = {leaf.shape[0] for leaf in jax.tree.leaves(per_elt_updates)}
        if counts != {workers}:
            raise ValueError(f"per_elt_updates must have {workers} rows in every leaf, got {sorted(counts)}")
        along = ReduceState(None, 0)
        return jax.vmap(reduce.update, (0, along), (None, along), axis_name=name)(per_elt_updates, state)

    return aggregating.Aggregator(init, update)
