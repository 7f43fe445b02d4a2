r"""Structured perturbation: what one moved parameter changes, and nothing else.

A weight W_ij moves one unit of its layer: :math:`y_j \leftarrow y_j + \mu x_i`. Elementwise operations keep the change
in that one column, and the next product or convolution needs that column alone:
:math:`z \leftarrow z + \Delta_j W'_{j,:}`. Only what follows is evaluated as a whole. What comes before the weight is
not evaluated at all: its values are known.

Whatever the rules below do not know is evaluated as it stands, on whole values: the answer is the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.sites import Equation, Literal, Place, Program, read
from jaxrobust.typing import Array

_ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos cosh div eq
    erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg
    nextafter not or pow real rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905 - a list of seventy quoted words reads worse.
)
_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min", "reduce_prod"})
_WINDOWS = frozenset({"reduce_window_max", "reduce_window_min", "reduce_window_sum"})


@dataclass(frozen=True)
class Entry:
    """One entry of a leaf, moved by a step; everything else of it is as it was.

    Attributes:
      index: of the entry, for each axis.
      step: what was added.
    """

    index: tuple[Array, ...]
    step: Array


@dataclass(frozen=True)
class Column:
    """A value that has changed in one place along an axis.

    Attributes:
      axis: the axis.
      index: the place.
      value: what stands there, with the axis of length 1.
    """

    axis: int
    index: Array
    value: Array


@dataclass(frozen=True)
class Whole:
    """A value that has changed anywhere.

    Attributes:
      value: what it is now.
    """

    value: Array


def after_step(program: Program, values: Mapping[Place, Array], leaf: int, index: Array, step: float) -> Array:
    """The first result of a program after one entry of a leaf has moved.

    Args:
      program: a function's equations.
      values: of all places, as `Program.evaluate` gives them.
      leaf: number of the leaf.
      index: int32, of the entry in the ravelled leaf.
      step: what is added to it.

    Returns:
      The value.
    """
    place = program.leaves[leaf]
    base = values[place]
    moved = jnp.asarray(step, base.dtype)
    at = jnp.unravel_index(index, base.shape) if base.ndim else ()
    if base.ndim == 1:
        return _after(program, values, place, Column(0, index, jax.lax.dynamic_slice(base, (index,), (1,)) + moved))
    return _after(program, values, place, Entry(tuple(at), moved))


def after_unit(
    program: Program, values: Mapping[Place, Array], place: Place, unit: Array, step: float
) -> tuple[Array, Array]:
    """The first result of a program after one unit of an activation has moved, for all examples at once.

    Args:
      program: a function's equations.
      values: of all places, as `Program.evaluate` gives them.
      place: of the activation, `[batch, ...]`, which an equation gives.
      unit: int32, of the entry in an example's ravelled activation.
      step: what is added to it.

    Returns:
      The value, and what was added in the activation's precision, `[batch]`.
    """
    base = values[place]
    moved, axis = jnp.asarray(step, base.dtype), base.ndim - 1
    if not axis:
        now = base + moved
        return _after(program, values, place, Whole(now)), now - base
    *places, channel = jnp.unravel_index(unit, base.shape[1:])
    column = jax.lax.dynamic_slice_in_dim(base, channel, 1, axis)
    spot = column[(slice(None), *places, 0)] + moved
    now = Column(axis, channel, column.at[(slice(None), *places, 0)].set(spot))
    return _after(program, values, place, now), spot - column[(slice(None), *places, 0)]


def _after(program: Program, values: Mapping[Place, Array], place: Place, change: Entry | Column | Whole) -> Array:
    """The first result after a change of one place."""
    wanted = program.outputs[0]
    now: dict[Place, Entry | Column | Whole] = {place: change}
    for number in program.needed((wanted,)):
        equation = program.equations[number]
        changed = [now.get(p) if not isinstance(p, Literal) else None for p in equation.inputs]
        if all(one is None for one in changed):
            continue
        found = _column_rule(equation, changed, values)
        if found is None:
            inputs = {p: _whole(now[p], values[p]) if p in now else values[p] for p in equation.places()}
            outputs = equation.call(*read(equation.arguments, inputs))
            now.update(zip(equation.outputs, map(Whole, outputs), strict=True))
        else:
            now[equation.outputs[0]] = found
    return _whole(now[wanted], values[wanted]) if wanted in now else read((wanted,), values)[0]


def _whole(change: Entry | Column | Whole, base: Array) -> Array:
    if isinstance(change, Whole):
        return change.value
    if isinstance(change, Entry):
        return base.at[change.index].add(change.step)
    return jax.lax.dynamic_update_slice_in_dim(base, change.value, change.index, change.axis)


def _column_rule(
    equation: Equation, changed: list[Any], values: Mapping[Place, Array]
) -> Entry | Column | Whole | None:
    """What an equation makes of a change in one entry or column; None where it takes whole values."""
    moved = [n for n, change in enumerate(changed) if change is not None]
    if any(isinstance(changed[n], Whole) for n in moved) or len(equation.outputs) != 1:
        return None
    first, name = changed[moved[0]], equation.name
    if isinstance(first, Entry):
        return _entry_rule(equation, moved, first, values) if len(moved) == 1 else None
    if any(isinstance(changed[n], Entry) for n in moved):
        return None
    if any(changed[n].index is not first.index or changed[n].axis != first.axis for n in moved):
        return None
    if name in _ELEMENTWISE:
        return _elementwise(equation, changed, first, values)
    if len(moved) > 1:
        return None
    operand = equation.inputs[moved[0]]
    rank = values[operand].ndim
    if name in _REDUCTIONS and first.axis not in equation.options["axes"]:
        axes = equation.options["axes"]
        return Column(first.axis - sum(a < first.axis for a in axes), first.index, equation.call(first.value)[0])
    if name in _WINDOWS and _untouched(equation.options, first.axis):
        return Column(first.axis, first.index, equation.call(first.value)[0])
    if name == "transpose":
        order = equation.options["permutation"]
        return Column(order.index(first.axis), first.index, jnp.transpose(first.value, order))
    if name == "broadcast_in_dim":
        return _broadcast(equation, first, values[operand].shape)
    if name in ("reshape", "squeeze", "expand_dims"):
        return _reshaped(equation, first, values[operand].shape)
    if name == "dot_general" and moved == [0]:
        return _product(equation, first, values)
    if name == "conv_general_dilated" and moved == [0] and rank > 2:
        return _convolution(equation, first, values)
    return None


def _elementwise(equation: Equation, changed: list[Any], first: Column, values: Mapping[Place, Array]) -> Column | None:
    shape = equation.shapes[0]
    columns: dict[Any, Array] = {}
    for place, change in zip(equation.inputs, changed, strict=True):
        if isinstance(place, Literal):
            continue
        if change is not None:
            columns[place] = change.value
        elif values[place].ndim == 0:
            columns[place] = values[place]
        elif values[place].ndim != len(shape):
            return None
        else:
            wide = values[place].shape[first.axis] > 1
            columns[place] = (
                jax.lax.dynamic_slice_in_dim(values[place], first.index, 1, first.axis) if wide else values[place]
            )
    # One of a column's own axis of length 1 would stand for a whole axis.
    if shape[first.axis] == 1 or any(
        change is not None and values[place].shape[first.axis] != shape[first.axis]
        for place, change in zip(equation.inputs, changed, strict=True)
        if not isinstance(place, Literal)
    ):
        return None
    found = equation.call(*(a.value if isinstance(a, Literal) else columns[a] for a in equation.arguments))
    return Column(first.axis, first.index, found[0])


def _entry_rule(
    equation: Equation, moved: list[int], entry: Entry, values: Mapping[Place, Array]
) -> Entry | Column | Whole | None:
    name = equation.name
    if name == "convert_element_type":
        return Entry(entry.index, entry.step.astype(equation.options["new_dtype"]))
    if moved != [1] or isinstance(equation.inputs[0], Literal):
        return None
    left, kernel = (values[place] for place in equation.inputs)
    if name == "dot_general":
        (left_axes, right_axes), (left_batch, _) = equation.options["dimension_numbers"]
        if left_batch or len(left_axes) != 1 or kernel.ndim != 2:
            return None
        row, unit = entry.index[right_axes[0]], entry.index[1 - right_axes[0]]
        axis = len(equation.shapes[0]) - 1
        inputs = jax.lax.dynamic_index_in_dim(left, row, left_axes[0], keepdims=False)[..., None]
    elif name == "conv_general_dilated":
        numbers, options = equation.options["dimension_numbers"], equation.options
        if options["feature_group_count"] != 1 or options["batch_group_count"] != 1:
            return None
        out, incoming = numbers.rhs_spec[:2]
        unit, axis = entry.index[out], numbers.out_spec[1]
        channel = jax.lax.dynamic_index_in_dim(left, entry.index[incoming], numbers.lhs_spec[1], keepdims=True)
        spot = [entry.index[n] for n in numbers.rhs_spec[2:]]
        shifted = _window(_padded(channel, options), spot, equation.shapes[0], options)
        inputs = jnp.transpose(shifted[..., None], _back(numbers.out_spec))
    else:
        return None
    base = jax.lax.dynamic_slice_in_dim(values[equation.outputs[0]], unit, 1, axis)
    return Column(axis, unit, base + (inputs * entry.step.astype(inputs.dtype)).astype(base.dtype))


def _product(equation: Equation, change: Column, values: Mapping[Place, Array]) -> Column | Whole | None:
    left, right = equation.inputs
    if isinstance(right, Literal):
        return None
    (left_axes, right_axes), (left_batch, _) = equation.options["dimension_numbers"]
    if left_batch or change.axis not in left_axes:
        return None
    other = right_axes[left_axes.index(change.axis)]
    delta = change.value - jax.lax.dynamic_slice_in_dim(values[left], change.index, 1, change.axis)
    part = jax.lax.dynamic_slice_in_dim(values[right], change.index, 1, other)
    return Whole(values[equation.outputs[0]] + equation.call(delta, part)[0])


def _convolution(equation: Equation, change: Column, values: Mapping[Place, Array]) -> Whole | None:
    left, right = equation.inputs
    numbers, options = equation.options["dimension_numbers"], equation.options
    if isinstance(right, Literal) or change.axis != numbers.lhs_spec[1]:
        return None
    if options["feature_group_count"] != 1 or options["batch_group_count"] != 1:
        return None
    delta = change.value - jax.lax.dynamic_slice_in_dim(values[left], change.index, 1, change.axis)
    kernel = jnp.transpose(values[right], (*numbers.rhs_spec[2:], *numbers.rhs_spec[1::-1]))
    size = kernel.shape[:-2]
    part = jax.lax.dynamic_index_in_dim(kernel, change.index, kernel.ndim - 2, keepdims=False)
    # As a product of patches: a convolution with a kernel of its own for every query would be a grouped one.
    whole, shape = _padded(delta, options), equation.shapes[0]
    patches = jnp.stack([_window(whole, spot, shape, options) for spot in np.ndindex(*size)], axis=-1)
    base = values[equation.outputs[0]]
    found = jnp.matmul(
        patches,
        part.reshape(-1, part.shape[-1]),
        precision=options["precision"],
        preferred_element_type=options["preferred_element_type"],
    )
    return Whole(base + jnp.transpose(found, _back(numbers.out_spec)).astype(base.dtype))


def _order(spec: tuple[int, ...]) -> tuple[int, ...]:
    """Examples, places, channels: the axes of an operand or a result of a convolution in this order."""
    return (spec[0], *spec[2:], spec[1])


def _back(spec: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes `_order`."""
    order = _order(spec)
    return tuple(order.index(axis) for axis in range(len(order)))


def _padded(channel: Array, options: Mapping[str, Any]) -> Array:
    """`[batch, *places]` of one channel, with the convolution's padding and dilation."""
    places = jnp.transpose(channel, _order(options["dimension_numbers"].lhs_spec))[..., 0]
    edges = [
        (low, high, apart - 1) for (low, high), apart in zip(options["padding"], options["lhs_dilation"], strict=True)
    ]
    return jax.lax.pad(places, jnp.zeros((), places.dtype), [(0, 0, 0), *edges])


def _window(whole: Array, spot: Any, shape: tuple[int, ...], options: Mapping[str, Any]) -> Array:
    """`[batch, *places]`, what one place of the kernel meets at every place of the result."""
    spec, strides = options["dimension_numbers"].out_spec, options["window_strides"]
    lengths = [shape[axis] for axis in spec[2:]]
    starts = [at * apart for at, apart in zip(spot, options["rhs_dilation"], strict=True)]
    reach = [(length - 1) * stride + 1 for length, stride in zip(lengths, strides, strict=True)]
    cut = jax.lax.dynamic_slice(whole, [jnp.int32(0), *map(jnp.int32, starts)], [whole.shape[0], *reach])
    return cut[(slice(None), *(slice(None, None, stride) for stride in strides))]


def _broadcast(equation: Equation, change: Column, before: tuple[int, ...]) -> Column | None:
    dimensions, shape = equation.options["broadcast_dimensions"], list(equation.options["shape"])
    axis = dimensions[change.axis]
    if len(equation.inputs) > 1 or before[change.axis] != shape[axis]:
        return None
    shape[axis] = 1
    return Column(axis, change.index, jax.lax.broadcast_in_dim(change.value, shape, dimensions))


def _reshaped(equation: Equation, change: Column, before: tuple[int, ...]) -> Column | None:
    """Where axes of length 1 alone come or go."""
    after = equation.shapes[0]
    if len(equation.inputs) > 1 or (equation.name == "reshape" and equation.options.get("dimensions")):
        return None
    if before[change.axis] == 1 or [n for n in before if n != 1] != [n for n in after if n != 1]:
        return None
    order = sum(n != 1 for n in before[: change.axis])
    axis = [place for place, n in enumerate(after) if n != 1][order]
    shape = [1 if place == axis else n for place, n in enumerate(after)]
    return Column(axis, change.index, change.value.reshape(shape))


def _untouched(options: Mapping[str, Any], axis: int) -> bool:
    """Whether a window is one wide along an axis, and nothing is padded or left out there."""
    ones = all(
        int(np.asarray(options[name])[axis]) == 1
        for name in ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    )
    return ones and tuple(options["padding"][axis]) == (0, 0)
