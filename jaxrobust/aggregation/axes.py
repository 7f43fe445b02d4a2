"""Collectives over one mapped axis or several, the outermost first: `"data"`, or `("data", "worker")`.

A worker's number counts as if the axes were one, the last running fastest. Gathers go one axis at a time: over several
at once they permute silently where one of the axes is a `vmap` inside a `shard_map`.
"""

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, AxisName, PyTree


def names(axis: AxisName) -> tuple[str, ...]:
    """The axes as a tuple."""
    return (axis,) if isinstance(axis, str) else tuple(axis)


def size(axis: AxisName) -> int:
    """Number of workers; static."""
    workers = 1
    for name in names(axis):
        workers *= jax.lax.axis_size(name)
    return workers


def position(axis: AxisName) -> Array:
    """This worker's number, int32 in [0, size)."""
    number = jnp.int32(0)
    for name in names(axis):
        number = number * jax.lax.axis_size(name) + jax.lax.axis_index(name)
    return number


def gather(tree: PyTree, axis: AxisName) -> PyTree:
    """All workers' trees, stacked by number on a new leading axis."""

    def one(leaf: Array) -> Array:
        stacked = leaf
        for name in reversed(names(axis)):
            stacked = jax.lax.all_gather(stacked, name)
        return stacked.reshape(size(axis), *jnp.shape(leaf))

    return jax.tree.map(one, tree)


def common(tree: PyTree, axis: AxisName) -> PyTree:
    """What is equal on all workers, known to be so: a result that depends on it is then one under `vmap`, not n."""
    return jax.tree.map(lambda leaf: jax.lax.pmax(leaf, names(axis)), tree)
