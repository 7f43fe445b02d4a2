r"""A reduction in two levels: exact among neighbors, packed between groups of them.

.. math:: g = F(Q(\bar g_1), \dots, Q(\bar g_m)), \quad \bar g_k = \frac{1}{l} \sum_{i \in \text{group } k} g_i

Devices of one host share fast links, hosts slow ones. The l workers of a group add their gradients up, each keeps one
of l slices of the mean, and reduces it with the workers of the other groups that hold the same slice; slices are
gathered inside the group at last. Between groups a worker sends 1 / l of what it would send otherwise.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxrobust.aggregation import axes
from jaxrobust.aggregation.all_reduce import ReduceState, Reduction
from jaxrobust.typing import Params, PyTree, State


def hierarchical(reduce: Reduction, inner_axis: str, inner_workers: int) -> Reduction:
    """Average exactly over an inner axis, and reduce what results over the outer one.

    Args:
      reduce: the reduction over the outer axis; all that it keeps is of a slice.
      inner_axis: the mapped axis of the workers of one group, inside the outer one.
      inner_workers: l, their number.

    Returns:
      A `Reduction` over both axes. Its rule has a vector of each group, so that a hostile worker is a hostile group.

    Raises:
      ValueError: for fewer than one inner worker; in the first step for another number than the axis has.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.aggregation import all_reduce, rules
      >>> reduce = hierarchical(all_reduce("host", rule=rules.median()), "device", inner_workers=2)
      >>> gradients = jnp.array([[1.0, 3.0], [5.0, 5.0], [90.0, 100.0]])
      >>> inner = jax.vmap(reduce.update, in_axes=(0, None), axis_name="device")
      >>> reduced, _ = jax.vmap(inner, in_axes=(0, None), axis_name="host")(gradients, reduce.init(jnp.array(0.0)))
      >>> reduced.tolist()
      [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]
    """
    if inner_workers < 1:
        raise ValueError(f"inner_workers must be positive, got {inner_workers}")

    def slice_of(params: PyTree) -> jax.ShapeDtypeStruct:
        dimension = sum(leaf.size for leaf in jax.tree.leaves(params))
        return jax.ShapeDtypeStruct((-(-dimension // inner_workers),), jnp.float32)

    def init(params: Params) -> ReduceState:
        # What is equal over the outer axis differs from slice to slice: each worker's own.
        return ReduceState((), reduce.init(slice_of(params)))

    def update(
        gradients: PyTree, state: ReduceState, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, State]:
        del params, extra
        if axes.size(inner_axis) != inner_workers:
            raise ValueError(f"inner_workers must be the {axes.size(inner_axis)} of {inner_axis}, got {inner_workers}")
        vector, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients))
        parts = jnp.pad(vector, (0, -vector.size % inner_workers)).reshape(inner_workers, -1)
        mean = jax.lax.psum_scatter(parts, inner_axis) / jnp.float32(inner_workers)
        column, own = reduce.update(mean, state.own)
        joined = axes.gather(column, inner_axis).reshape(-1)[: vector.size]
        return jax.tree.map(lambda new, leaf: new.astype(leaf.dtype), unravel(joined), gradients), ReduceState((), own)

    def combine(tree: PyTree, state: ReduceState) -> PyTree:
        return reduce.combine(jax.lax.pmean(tree, inner_axis), state.own)

    return Reduction(init, update, combine, (*axes.names(reduce.axis), inner_axis), reduce.averages)
