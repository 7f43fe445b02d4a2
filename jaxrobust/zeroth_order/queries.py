"""Queries side by side: in chunks on one device, and split over the devices of a mapped axis."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxrobust.aggregation import axes
from jaxrobust.sites import Place, Program
from jaxrobust.typing import Array, AxisName


def answers(
    query: Callable[[Array], Array], numbers: Array, chunk_size: int, axis_name: AxisName | None = None
) -> Array:
    """What a function gives for each of some numbers.

    Args:
      query: of one number.
      numbers: `[count]`; count is static.
      chunk_size: how many are evaluated at once.
      axis_name: the mapped axis whose devices share the work: the i-th of n takes every n-th number from the i-th on,
        so that each has its part of every layer. Only answers are gathered. All must have the same data. A last round
        that is not whole is filled up with queries whose answers nobody reads.

    Returns:
      `[count, ...]`, the same on all devices.
    """
    count = numbers.shape[0]
    if axis_name is None:
        return jax.lax.map(query, numbers, batch_size=min(chunk_size, count))
    devices = axes.size(axis_name)
    each = -(-count // devices)
    # The last round is filled up with the first number.
    dealt = jnp.concatenate([numbers, jnp.broadcast_to(numbers[:1], (each * devices - count,))])
    own = dealt.reshape(each, devices)[:, axes.position(axis_name)]
    found = jax.lax.map(query, own, batch_size=min(chunk_size, each))
    together = jnp.moveaxis(axes.gather(found, axis_name), 0, 1)
    return together.reshape(each * devices, *found.shape[1:])[:count]


def within(
    chunk_size: int, chunk_bytes: int | None, program: Program, values: Mapping[Place, Array], place: Place
) -> int:
    """How many queries go side by side, where their values may take so many bytes.

    Args:
      chunk_size: at most so many.
      chunk_bytes: of what the queries of a chunk hold at once; None for any number.
      program: the function's equations.
      values: of all places.
      place: what a query moves.

    Returns:
      At least one.
    """
    if chunk_bytes is None:
        return chunk_size
    return max(1, min(chunk_size, chunk_bytes // query_bytes(program, values, place)))


def query_bytes(program: Program, values: Mapping[Place, Array], place: Place) -> int:
    """Bytes that the values of one query take at their peak: of all that depends on what is moved, while it is read.

    A compiler that joins operations needs less. Of a loop or a branch that is reached, all that one turn holds counts.

    Args:
      program: the function's equations.
      values: of all places.
      place: what the query moves.

    Returns:
      The number, at least 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.sites import trace
      >>> program = trace(lambda w: jnp.sum(jnp.tanh(jnp.ones((2, 3)) @ w)), jnp.zeros((3, 5)))
      >>> query_bytes(program, program.evaluate([jnp.zeros((3, 5))]), program.leaves[0])  # w and a product, or two
      100
    """
    moved, reached = {place}, []
    for number in program.needed(program.outputs[:1]):
        if not moved.isdisjoint(program.equations[number].places()):
            reached.append(program.equations[number])
            moved.update(reached[-1].outputs)
    last = {read: turn for turn, equation in enumerate(reached) for read in equation.places()}
    held, most = {place}, 1
    for turn, equation in enumerate(reached):
        held.update(equation.outputs)
        most = max(
            most, _inside(equation.options) + sum(values[each].size * values[each].dtype.itemsize for each in held)
        )
        held = {each for each in held if last.get(each, turn) > turn}
    return most


_NESTED = (core.Jaxpr, core.ClosedJaxpr)


def _inside(options: Mapping[str, Any]) -> int:
    """Bytes at the peak of what is nested in an equation: the body of a loop, or the largest of the branches."""
    nested = jax.tree.leaves(options, is_leaf=lambda value: isinstance(value, _NESTED))
    return max((_peak(each) for each in nested if isinstance(each, _NESTED)), default=0)


def _peak(body: core.Jaxpr | core.ClosedJaxpr) -> int:
    """Bytes that the values which a jaxpr makes take at their peak; its inputs are others' values."""
    jaxpr = body.jaxpr if isinstance(body, core.ClosedJaxpr) else body
    last = {read: turn for turn, equation in enumerate(jaxpr.eqns) for read in equation.invars if _is_variable(read)}
    last |= {read: len(jaxpr.eqns) for read in jaxpr.outvars if _is_variable(read)}
    held: set[core.Var] = set()
    most = 0
    for turn, equation in enumerate(jaxpr.eqns):
        held.update(equation.outvars)
        most = max(most, _inside(equation.params) + sum(map(_size, held)))
        held = {each for each in held if last.get(each, turn) > turn}
    return most


def _size(variable: Any) -> int:
    return variable.aval.size * variable.aval.dtype.itemsize


def _is_variable(read: Any) -> bool:
    return isinstance(read, core.Var)
