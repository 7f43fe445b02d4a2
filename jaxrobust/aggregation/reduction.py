"""What a reduction over workers is: a pair of functions with attributes, and the state that they pass on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from jaxrobust.aggregation.suspicion import Suspicion
from jaxrobust.typing import Array, AxisName, PyTree, State


class Shared(NamedTuple):
    """What is equal on all workers.

    Attributes:
      count: int32, reductions done.
      codec: the codec's levels.
      broadcast: those of the second hop's codec.
      bits: float32, bits that one worker sent in the last step, in both hops.
      dropped: int32, workers that the last step left out because their vectors were not finite.
      suspicion: a `Suspicion`, which worker stood out, and when.
    """

    count: Array
    codec: State
    broadcast: State
    bits: Array
    dropped: Array
    suspicion: Suspicion


class Own(NamedTuple):
    """What is each worker's own.

    Attributes:
      codec: the codec's memory.
      rule: the rule's memory of the columns that the worker joins.
      broadcast: the memory of the second hop's codec, of the same columns.
      fingerprint: uint32, of the bits of the gradient of the last step.
    """

    codec: State
    rule: State
    broadcast: State
    fingerprint: Array


class ReduceState(NamedTuple):
    """A worker's state of a reduction.

    Attributes:
      shared: a `Shared`, equal by value on all workers.
      own: an `Own`. Under `shard_map` it is not replicated: the workers' states lie along the mapped axis.
    """

    shared: Any
    own: Any


class Reduction(optax.GradientTransformationExtraArgs):
    """An optax transformation over a mapped axis, which unpacks into `(init, update)` like any other.

    As a pytree it is that pair; its other attributes go along unchanged.

    Attributes:
      combine: `(tree, state) -> tree`, how workers' other quantities (statistics, metrics) become one: by the mean
        where the rule is the mean, else by the median of the finite values: a hostile worker cannot lie through them.
      axis: the mapped axis, or several with the outermost first.
      averages: whether the rule is the mean; what workers share in a step (batch statistics) may then be a mean too.
      inner: the last of these axes where it is one of the members of a group, who average exactly; else None.
    """

    combine: Callable[[PyTree, ReduceState], PyTree]
    axis: AxisName
    averages: bool
    inner: str | None

    def __new__(
        cls,
        init: optax.TransformInitFn,
        update: Callable[..., tuple[PyTree, State]],
        combine: Callable[[PyTree, ReduceState], PyTree],
        axis: AxisName,
        averages: bool = False,
        inner: str | None = None,
    ) -> "Reduction":
        """Build one; see the class's attributes."""
        self = super().__new__(cls, init, update)
        self.combine, self.axis, self.averages, self.inner = combine, axis, averages, inner
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return *self, *self._attributes().values()

    def _attributes(self) -> dict[str, Any]:
        return {"combine": self.combine, "axis": self.axis, "averages": self.averages, "inner": self.inner}

    def _replace(self, **changes: Any) -> "Reduction":
        return Reduction(**{**self._asdict(), **self._attributes(), **changes})


jax.tree_util.register_pytree_node(
    Reduction,
    lambda reduce: (tuple(reduce), tuple(reduce._attributes().values())),
    lambda attributes, pair: Reduction(*pair, *attributes),
)
