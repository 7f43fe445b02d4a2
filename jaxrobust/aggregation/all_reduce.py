r"""All-reduce of gradients over a mapped axis: a codec says what travels, a rule says how n vectors become one.

.. math:: g = F(Q(g_1), \dots, Q(g_n))

Each worker ravels its gradient into one float32 vector, encodes it with a key of its own, and gathers all packed
messages; every worker decodes the same bytes and applies the same rule, so that their results are equal to the bit.
All collectives name their axis: the same reduction runs under `jax.vmap(axis_name=...)` (workers played on one device),
`jax.shard_map` with `check_vma=False` and `jax.pmap`, and packs the same codes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxrobust.aggregation import axes
from jaxrobust.aggregation.codecs.float32 import float32
from jaxrobust.aggregation.packing import wire_bits
from jaxrobust.aggregation.rules.mean import mean
from jaxrobust.typing import Array, AxisName, Codec, Key, Params, PyTree, Rule, State

_FLOAT32, _MEAN = float32(), mean()


class Shared(NamedTuple):
    """What is equal on all workers.

    Attributes:
      count: int32, reductions done.
      codec: the codec's levels.
      rule: the rule's state.
      broadcast: state `(shared, own)` of the second hop's codec, () without one.
      bits: float32, bits of the message that one worker sends in a step.
      dropped: int32, workers that the last step left out because their vectors were not finite.
    """

    count: Array
    codec: State
    rule: State
    broadcast: State
    bits: Array
    dropped: Array


class ReduceState(NamedTuple):
    """A worker's state of a reduction.

    Attributes:
      shared: a `Shared`, equal by value on all workers.
      own: the codec's memory, each worker's own.
    """

    shared: Shared
    own: State


class Reduction(optax.GradientTransformationExtraArgs):
    """An optax transformation over a mapped axis, which unpacks into `(init, update)` like any other.

    Attributes:
      combine: `(tree, state) -> tree`, how workers' other quantities (statistics, metrics) become one: by the mean
        where the rule is the mean, else by the median of the finite values: a hostile worker cannot lie through them.
      axis: the mapped axis, or several with the outermost first.
      averages: whether the rule is the mean; what workers share in a step (batch statistics) may then be a mean too.
    """

    combine: Callable[[PyTree, ReduceState], PyTree]
    axis: AxisName
    averages: bool

    def __new__(
        cls,
        init: optax.TransformInitFn,
        update: Callable[..., tuple[PyTree, State]],
        combine: Callable[[PyTree, ReduceState], PyTree],
        axis: AxisName,
        averages: bool = False,
    ) -> "Reduction":
        """Build one; see the class's attributes."""
        self = super().__new__(cls, init, update)
        self.combine, self.axis, self.averages = combine, axis, averages
        return self


def all_reduce(
    axis_name: AxisName,
    *,
    codec: Codec = _FLOAT32,
    rule: Rule = _MEAN,
    broadcast_codec: Codec | None = None,
    key: Key | None = None,
) -> Reduction:
    r"""Reduce gradients over a mapped axis.

    .. math:: g = Q_2(F(Q(g_1), \dots, Q(g_n)))

    Worker i in step t draws from `fold_in(fold_in(key, t), i)`. With the defaults it is one `pmean`.

    Args:
      axis_name: the mapped axis, or several with the outermost first, as `("data", "worker")` where `"worker"` is a
        `vmap` inside a `shard_map` over `"data"`.
      codec: Q, how a worker's vector travels. Where it adapts, it observes the vectors before each encoding.
      rule: F, how the decoded vectors become one. A worker whose vector is not finite is left out. The rule's `init` is
        told of 0 workers, for their number is known within the axis only.
      broadcast_codec: Q_2, how the result travels back where one server computes it; None for as it is, like the
        published runs. All workers round it alike.
      key: equal on all workers; needed by codecs other than `float32()` and by rules that draw.

    Returns:
      A `Reduction`; its `update(gradients, state)` gives a tree like gradients, with their dtypes. The plain mean
      leaves nobody out: with one gradient that is not finite, neither is the mean.

    Raises:
      ValueError: for a codec without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.aggregation import rules
      >>> reduce = all_reduce("data", rule=rules.median())
      >>> gradients, state = jnp.array([1.0, 2.0, 100.0]), reduce.init(jnp.array(0.0))
      >>> reduced, _ = jax.vmap(reduce.update, in_axes=(0, None), axis_name="data")(gradients, state)
      >>> reduced.tolist()
      [2.0, 2.0, 2.0]
    """
    if key is None and (codec != _FLOAT32 or broadcast_codec not in (None, _FLOAT32)):
        raise ValueError("key must be given for a codec that rounds, got None: pass jax.random.key(0)")
    average = partial(_mean, axis=axis_name)
    combine = average if rule == _MEAN else partial(_median, axis=axis_name)
    exact = codec == _FLOAT32 and rule == _MEAN and broadcast_codec in (None, _FLOAT32)

    def init(params: Params) -> ReduceState:
        dimension = sum(leaf.size for leaf in jax.tree.leaves(params))
        levels, own = codec.init(dimension)
        vector = jax.ShapeDtypeStruct((dimension,), jnp.float32)
        wire, _ = jax.eval_shape(codec.encode, key, vector, (levels, own))
        shared = Shared(
            count=jnp.int32(0),
            codec=levels,
            rule=rule.init(0, dimension),
            broadcast=broadcast_codec.init(dimension) if broadcast_codec else (),
            bits=jnp.float32(wire_bits(wire)),
            dropped=jnp.int32(0),
        )
        return ReduceState(shared, own)

    def update(
        gradients: PyTree, state: ReduceState, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, ReduceState]:
        del params, extra
        if exact:
            shared = state.shared._replace(count=state.shared.count + 1)
            return average(gradients, state), ReduceState(shared, state.own)
        shared = axes.common(state.shared, axis_name)
        workers = axes.size(axis_name)
        step_key = _folded(key, shared.count)
        own_key, rule_key, broadcast_key = (
            _folded(step_key, number) for number in (axes.position(axis_name), workers, workers + 1)
        )
        vector, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients))
        levels = codec.adapt(codec.observe(vector, (shared.codec, state.own), axis_name))
        wire, own = codec.encode(own_key, vector, (levels, state.own))
        rows = jax.vmap(lambda message: codec.decode(message, levels)[: vector.size])(axes.gather(wire, axis_name))
        alive = jnp.all(jnp.isfinite(rows), axis=1)
        column, memory, _ = rule.apply(rule_key, rows, alive, shared.rule, None)
        broadcast = shared.broadcast
        if broadcast_codec:
            wire, kept = broadcast_codec.encode(broadcast_key, column, broadcast)
            column = broadcast_codec.decode(wire, broadcast[0])[: vector.size]
            broadcast = (broadcast[0], kept)
        shared = Shared(
            count=shared.count + 1,
            codec=levels,
            rule=memory,
            broadcast=broadcast,
            bits=shared.bits,
            dropped=jnp.int32(workers) - jnp.sum(alive, dtype=jnp.int32),
        )
        reduced = jax.tree.map(lambda new, leaf: new.astype(leaf.dtype), unravel(column), gradients)
        return reduced, ReduceState(shared, own)

    return Reduction(init, update, combine, axis_name, rule == _MEAN)


def exact_mean(axis_name: AxisName) -> Reduction:
    r"""The plain mean over a mapped axis; the default of the reduce slot.

    .. math:: g = \frac{1}{n} \sum_i g_i

    Args:
      axis_name: the mapped axis, or several with the outermost first.

    Returns:
      A `Reduction` that is one `pmean`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> reduce = exact_mean("data")
      >>> gradients, state = jnp.array([1.0, 2.0, 6.0]), reduce.init(jnp.array(0.0))
      >>> reduced, _ = jax.vmap(reduce.update, in_axes=(0, None), axis_name="data")(gradients, state)
      >>> reduced.tolist()
      [3.0, 3.0, 3.0]
    """
    return all_reduce(axis_name)


def aggregate(rule: Rule, stacked: Array, *, key: Key | None = None) -> Array:
    """Join vectors that lie on one device.

    Args:
      rule: how n vectors become one.
      stacked: `[workers, dimension]`; a row with a value that is not finite is left out.
      key: for rules that draw; others take None.

    Returns:
      `[dimension]`.

    Raises:
      ValueError: for anything but a matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation import rules
      >>> aggregate(rules.median(), jnp.array([[1.0], [3.0], [jnp.inf], [4.0]])).tolist()
      [3.0]
    """
    if jnp.ndim(stacked) != 2:
        raise ValueError(f"stacked must be [workers, dimension], got shape {jnp.shape(stacked)}: ravel each vector")
    alive = jnp.all(jnp.isfinite(stacked), axis=1)
    return rule.apply(key, stacked, alive, rule.init(*stacked.shape), None)[0]


def _folded(key: Key | None, number: Array | int) -> Any:
    """A key of its own, None without one: a codec that rounds never meets None, for `all_reduce` refuses it."""
    return None if key is None else jax.random.fold_in(key, number)


def _mean(tree: PyTree, state: ReduceState, *, axis: AxisName) -> PyTree:
    del state
    return jax.lax.pmean(tree, axes.names(axis))


def _median(tree: PyTree, state: ReduceState, *, axis: AxisName) -> PyTree:
    del state

    def middle(rows: Array) -> Array:
        return jnp.nanmedian(jnp.where(jnp.isfinite(rows), rows, jnp.nan), axis=0)

    return jax.tree.map(middle, axes.gather(tree, axis))
