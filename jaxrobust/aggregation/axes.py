"""Collectives over one mapped axis or several, the outermost first: `"data"`, or `("data", "worker")`.

A worker's number counts as if the axes were one, the last running fastest. Gathers and exchanges go one axis at a time:
over several at once they permute silently where one of the axes is a `vmap` inside a `shard_map`.
"""

import math

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, AxisName, PyTree

LONG = 8


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
            stacked = _gather(stacked, name)
        return stacked.reshape(size(axis), *jnp.shape(leaf))

    return jax.tree.map(one, tree)


def _gather(leaf: Array, name: str) -> Array:
    """Over a long axis in two stages, of near workers and of far ones.

    A TPU's compiler turns a gather of small parts over very many devices into an all-reduce of the whole, which sends
    twice as much; it leaves these be.
    """
    number = jax.lax.axis_size(name)
    near = max((n for n in range(1, math.isqrt(number) + 1) if number % n == 0), default=1)
    if near < LONG:
        return jax.lax.all_gather(leaf, name)
    first = [[near * far + n for n in range(near)] for far in range(number // near)]
    second = [[near * far + n for far in range(number // near)] for n in range(near)]
    try:
        stacked = jax.lax.all_gather(leaf, name, axis_index_groups=first)
    except NotImplementedError:  # A `vmap` knows no groups, and sends nothing.
        return jax.lax.all_gather(leaf, name)
    return jax.lax.all_gather(stacked, name, axis_index_groups=second).reshape(number, *leaf.shape)


def exchange(tree: PyTree, axis: AxisName) -> PyTree:
    """Send part k of every leaf `[workers, ...]` to worker k; what comes back is stacked by the sender's number."""

    def one(leaf: Array) -> Array:
        sizes = [jax.lax.axis_size(name) for name in names(axis)]
        parts = leaf.reshape(*sizes, *leaf.shape[1:])
        for place, name in enumerate(names(axis)):
            parts = jax.lax.all_to_all(parts, name, split_axis=place, concat_axis=place)
        return parts.reshape(leaf.shape)

    return jax.tree.map(one, tree)


def total(tree: PyTree, axis: AxisName) -> PyTree:
    """The sum over all workers."""
    return jax.lax.psum(tree, names(axis))


def common(tree: PyTree, axis: AxisName) -> PyTree:
    """What is equal on all workers, known to be so: a result that depends on it is then one under `vmap`, not n."""
    return jax.tree.map(lambda leaf: jax.lax.pmax(leaf, names(axis)), tree)
