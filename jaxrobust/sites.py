r"""Linear sites: where a function's parameters meet its activations, found in its jaxpr.

A leaf of a network's parameters is used, as a rule, in one operation that is linear in it: the right operand of a
matrix product or a convolution, a shift, a scale. With x the input of that operation and z its output,
:math:`z = A(x) w`, the leaf's gradient is :math:`A(x)^T \, \partial f / \partial z`: what perturbs z stands for what
perturbs w. Nothing here asks for layers: the function may be a Linen or an NNX network or plain code; `jit`, `remat`,
`custom_jvp` and `custom_vjp` are looked into, `scan`, `while_loop` and `cond` are not.

    program = trace(function, params)         # equations in one list, nothing nested but loops
    values = program.evaluate(leaves)         # every intermediate value, once
    program.after(values, {place: delta})     # the outputs after a change, by what depends on it alone
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from jaxrobust.typing import Array, Params, PyTree

Place = int
"""Number of a value of a program: of a leaf, a constant or what an equation gives."""

# Calls whose inner equations are the function's own, by the name of their primitive: where the inner jaxpr is.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
_SUMS = {"add", "add_any", "sub"}
# What gives a value anew, or in another shape or dtype.
_RESHAPING = {"reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "copy", "convert_element_type"}


class Equation(NamedTuple):
    """One operation.

    Attributes:
      name: of its primitive.
      options: the primitive's parameters.
      call: arguments to outputs.
      arguments: places or literals, each of the call's once.
      inputs: the same in the order of the primitive's operands.
      outputs: places.
      shapes: of the outputs.
      effects: whether it does more than give values, as a callback that prints.
    """

    name: str
    options: dict[str, Any]
    call: Callable[..., list[Array]]
    arguments: tuple[Any, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Place, ...]
    shapes: tuple[tuple[int, ...], ...]
    effects: bool

    def places(self) -> tuple[Place, ...]:
        """What it reads, each place once."""
        return tuple(dict.fromkeys(place for place in self.inputs if not isinstance(place, Literal)))


class Literal(NamedTuple):
    """A constant among an equation's inputs."""

    value: Any


class Site(NamedTuple):
    """A use of a leaf that is linear in it.

    Attributes:
      leaf: the leaf's number.
      tap: the place of what the use gives, `[batch, ...]`: where a perturbation goes in.
      path: equations from the leaf to the tap, by number.
    """

    leaf: int
    tap: Place
    path: tuple[int, ...]


class Uses(NamedTuple):
    """How a leaf is used.

    Attributes:
      sites: its linear sites.
      others: names of primitives that use it in any other way.
    """

    sites: tuple[Site, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A function of a pytree as one list of equations.

    Attributes:
      equations: in the order of evaluation.
      leaves: places of the argument's leaves.
      leaf_shapes: their shapes.
      outputs: places, or literals, of the results' leaves.
      constants: values of places that no equation gives.
      structure: tree structure of the result.
    """

    equations: tuple[Equation, ...]
    leaves: tuple[Place, ...]
    leaf_shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[Any, ...]
    constants: Mapping[Place, Array]
    structure: Any

    def evaluate(self, leaves: Sequence[Array]) -> dict[Place, Array]:
        """Every value, by its place."""
        values = {**self.constants, **dict(zip(self.leaves, leaves, strict=True))}
        for equation in self.equations:
            found = equation.call(*read(equation.arguments, values))
            values.update(zip(equation.outputs, found, strict=True))
        return values

    def result(self, values: Mapping[Place, Array]) -> PyTree:
        """What the function returned, of the values of all places."""
        return jax.tree.unflatten(self.structure, read(self.outputs, values))

    def after(
        self,
        values: Mapping[Place, Array],
        deltas: Mapping[Place, Array],
        replaced: Mapping[Place, Array] | None = None,
        outputs: Sequence[Place] | None = None,
    ) -> list[Array]:
        """Outputs after some values have changed; equations that no change reaches are not evaluated again.

        Args:
          values: as `evaluate` gives them.
          deltas: what is added to a place, after it has been found anew.
          replaced: what stands in a place that no equation gives, as a leaf.
          outputs: places to return; the program's own by default.

        Returns:
          Their values.
        """
        wanted = self.outputs if outputs is None else tuple(outputs)
        now = {**values, **(replaced or {})}
        now |= {place: values[place] + delta for place, delta in deltas.items() if place not in self._shapes}
        changed = {place for place in (*(replaced or ()), *deltas) if place not in self._shapes}
        for number in self.needed(wanted):
            equation = self.equations[number]
            reached = not changed.isdisjoint(equation.places())
            if not (reached or any(place in deltas for place in equation.outputs)):
                continue
            found = equation.call(*read(equation.arguments, now)) if reached else read(equation.outputs, values)
            for place, value in zip(equation.outputs, found, strict=True):
                now[place] = value + deltas[place] if place in deltas else value
            changed.update(equation.outputs)
        return read(wanted, now)

    def uses(self, leaf: int, batch: int) -> Uses:
        """The ways in which the first result uses a leaf.

        Args:
          leaf: its number.
          batch: examples: a tap's leading axis is of that length, and is not the leaf's own.

        Returns:
          A `Uses`. A sum that follows a site belongs to it, so that a kernel and its bias have one tap.
        """
        sites: list[Site] = []
        others: list[str] = []
        # With every form of the leaf, whether its leading axis is the leaf's own and not one it was spread over.
        shape = self.leaf_shapes[leaf]
        begun: list[tuple[Place, tuple[int, ...], bool]] = [(self.leaves[leaf], (), shape[:1] not in ((), (1,)))]
        while begun:
            place, path, own = begun.pop()
            for number in self._readers.get(place, ()):
                equation = self.equations[number]
                longer = (*path, number)
                kind = _kind(equation, place, batch, self._parameters, own)
                if kind == "site":
                    sites.append(self._extended(Site(leaf, equation.outputs[0], longer)))
                elif kind == "same":
                    begun.append((equation.outputs[0], longer, _leading(equation, own, self.shape_of(place))))
                else:
                    others.append(kind)
            if place in self.outputs[:1]:
                others.append("the result itself")
        return Uses(tuple(sites), tuple(others))

    def shape_of(self, place: Place) -> tuple[int, ...]:
        """Of any place."""
        if place in self.leaves:
            return self.leaf_shapes[self.leaves.index(place)]
        return np.shape(self.constants[place]) if place in self.constants else self._shapes[place]

    def along(self, site: Site, values: Mapping[Place, Array], leaf: Array) -> Array:
        """What the tap of a site is for another value of its leaf along this path, all else as it was.

        Linear in the leaf but for a constant: where paths of one leaf meet, each has the others as they were.
        """
        place, value = self.leaves[site.leaf], leaf
        for number in site.path:
            equation = self.equations[number]
            inputs = {p: value if p == place else values[p] for p in equation.places()}
            value = equation.call(*read(equation.arguments, inputs))[0]
            place = equation.outputs[0]
        return value

    def _extended(self, site: Site) -> Site:
        """The site with its tap behind sums and casts of it alone: a kernel and its bias share one, so do branches."""
        while True:
            readers = self._readers.get(site.tap, ())
            if len(readers) != 1 or site.tap in self.outputs:
                return site
            equation = self.equations[readers[0]]
            once = sum(place == site.tap for place in equation.inputs) == 1
            kept = equation.shapes[0] == self._shapes[site.tap]
            if not (once and kept and equation.name in _SUMS | {"convert_element_type"}):
                return site
            site = Site(site.leaf, equation.outputs[0], (*site.path, readers[0]))

    @cached_property
    def _parameters(self) -> frozenset[Place]:
        """Places that are made of leaves and literals alone: they hold no examples."""
        found = set(self.leaves)
        for equation in self.equations:
            if equation.places() and found.issuperset(equation.places()):
                found.update(equation.outputs)
        return frozenset(found)

    @cached_property
    def _shapes(self) -> dict[Place, tuple[int, ...]]:
        return {
            place: shape
            for equation in self.equations
            for place, shape in zip(equation.outputs, equation.shapes, strict=True)
        }

    @cached_property
    def _readers(self) -> dict[Place, list[int]]:
        """Equations that the first result needs, by what they read."""
        readers: dict[Place, list[int]] = {}
        for number in self.needed(self.outputs[:1]):
            for place in self.equations[number].places():
                readers.setdefault(place, []).append(number)
        return readers

    def needed(self, wanted: Sequence[Any]) -> list[int]:
        """Equations that the wanted places, and effects, need."""
        needed, chosen = {place for place in wanted if not isinstance(place, Literal)}, []
        for number in reversed(range(len(self.equations))):
            equation = self.equations[number]
            if equation.effects or needed & set(equation.outputs):
                chosen.append(number)
                needed.update(equation.places())
        return chosen[::-1]


def trace(function: Callable[[Params], PyTree], params: Params) -> Program:
    """A function's equations at params, with calls resolved.

    Args:
      function: of one pytree.
      params: pytree of arrays.

    Returns:
      A `Program`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> program = trace(lambda w: jax.nn.relu(jnp.ones((2, 3)) @ w["kernel"] + w["bias"]),
      ...                 {"bias": jnp.zeros(4), "kernel": jnp.zeros((3, 4))})
      >>> kernel, bias = program.uses(1, batch=2), program.uses(0, batch=2)
      >>> kernel.sites[0].tap == bias.sites[0].tap, kernel.others
      (True, ())
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(params)
    equations: list[Equation] = []
    constants: dict[Place, Array] = {}
    count = 0

    def new() -> Place:
        nonlocal count
        count += 1
        return count - 1

    def inline(jaxpr: core.Jaxpr, given: Sequence[Any], inner: Sequence[Any]) -> list[Any]:
        """Add a jaxpr's equations; the places of its results."""
        places: dict[core.Var, Any] = dict(zip(jaxpr.invars, given, strict=True))
        for variable, value in zip(jaxpr.constvars, inner, strict=True):
            places[variable] = new()
            constants[places[variable]] = value

        def of(atom: Any) -> Any:
            return Literal(np.asarray(atom.val)) if isinstance(atom, core.Literal) else places[atom]

        for eqn in jaxpr.eqns:
            inputs, name = [of(atom) for atom in eqn.invars], eqn.primitive.name
            if name in _CALLS and _CALLS[name] in eqn.params:
                called = eqn.params[_CALLS[name]]
                own, held = (called.jaxpr, called.consts) if isinstance(called, core.ClosedJaxpr) else (called, ())
                places.update(zip(eqn.outvars, inline(own, inputs, held), strict=True))
                continue
            read = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, core.Literal)))
            results = [variable for variable in eqn.outvars if not isinstance(variable, core.DropVar)]
            alone = core.Jaxpr((), read, results, [eqn], eqn.effects, core.DebugInfo("sites", name, None, None))
            outputs = tuple(new() for _ in results)
            shapes = tuple(tuple(getattr(variable.aval, "shape", ())) for variable in results)
            call = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))
            arguments = tuple(of(variable) for variable in read)
            equations.append(
                Equation(name, eqn.params, call, arguments, tuple(inputs), outputs, shapes, bool(eqn.effects))
            )
            places.update(zip(results, outputs, strict=True))
        return [of(atom) for atom in jaxpr.outvars]

    leaves = tuple(new() for _ in closed.jaxpr.invars)
    outputs = inline(closed.jaxpr, leaves, closed.consts)
    shapes = tuple(tuple(variable.aval.shape) for variable in closed.jaxpr.invars)
    return Program(tuple(equations), leaves, shapes, tuple(outputs), constants, jax.tree.structure(shape))


def read(places: Sequence[Any], values: Mapping[Place, Array]) -> list[Array]:
    """The values at places, and those of literals."""
    return [place.value if isinstance(place, Literal) else values[place] for place in places]


def _kind(equation: Equation, place: Place, batch: int, parameters: frozenset[Place], own: bool) -> str:
    """Whether a use is a linear site ("site"), the leaf in another form ("same"), or what else it is.

    In a site rows are examples': what a leaf's form is multiplied with must hold some, and the form's own leading axis
    must not be taken for them.
    """
    name, at = equation.name, [n for n, other in enumerate(equation.inputs) if other == place]
    if len(at) != 1 or len(equation.outputs) != 1:
        return name
    of_examples = equation.shapes[0][:1] == (batch,)
    others = [other for n, other in enumerate(equation.inputs) if n != at[0]]
    with_data = any(not isinstance(other, Literal) and other not in parameters for other in others)
    if name in ("dot_general", "conv_general_dilated"):
        if name == "dot_general":
            (left_axes, _), (_, own_batch) = equation.options["dimension_numbers"]
            plain = not own_batch and 0 not in left_axes
        else:
            numbers = equation.options["dimension_numbers"]
            plain = equation.options["batch_group_count"] == 1 and numbers.out_spec[0] == numbers.lhs_spec[0] == 0
        if at == [1] and plain and of_examples and with_data:
            return "site"
        return f"{name} as the {'left' if at == [0] else 'right'} operand"
    if name in _SUMS | {"mul"} or (name == "div" and at == [0]):
        return "site" if of_examples and with_data and not own else "same"
    return "same" if name in _RESHAPING else name


def _leading(equation: Equation, own: bool, before: tuple[int, ...]) -> bool:
    """Whether the leading axis of another form of a leaf is the leaf's own, and not one along which all is alike."""
    name, shape = equation.name, equation.shapes[0]
    if shape[:1] in ((), (1,)):
        return False
    if name == "broadcast_in_dim":
        dimensions = equation.options["broadcast_dimensions"]
        if 0 not in dimensions or before[dimensions.index(0)] == 1:
            return False
        return own or dimensions.index(0) != 0
    return own or name in ("transpose", "reshape", "squeeze")
