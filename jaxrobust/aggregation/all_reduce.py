r"""All-reduce of gradients over a mapped axis: a codec says what travels, a rule says how n vectors become one.

.. math:: g = F(Q(g_1), \dots, Q(g_n))

Each worker ravels its gradient into one vector, encodes it with a key of its own, and cuts the message into n slices of
whole buckets. By one all-to-all, worker k gets slice k of every message. It decodes them and applies the rule to these
columns; what a rule needs of whole vectors is one sum of n x n numbers. The result's slices are encoded anew and
gathered, and every worker decodes the same bytes, so that results are equal to the bit. A worker sends

.. math:: \frac{n - 1}{n} (b_1 + b_2)

bits, with b_1 and b_2 those of a whole message of the first and the second hop: as much as a ring all-reduce would, in
packed codes. Besides, a step makes what workers share known to be shared, counts what is not finite and looks for who
stands out: a few numbers for each worker or level.

In the hierarchical form the workers of a group, which have fast links, first average exactly: each adds up one of l
slices of the group's gradients and reduces that slice with the workers of other groups that hold the same. Between
groups a worker sends 1 / l of what it would send otherwise. All collectives name their axis: the same reduction runs
under `jax.vmap(axis_name=...)` (workers played on one device), `jax.shard_map` with `check_vma=False` and `jax.pmap`,
and packs the same codes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxrobust.aggregation import axes
from jaxrobust.aggregation.codecs.float32 import float32
from jaxrobust.aggregation.codecs.quantization import LONG
from jaxrobust.aggregation.packing import wire_bits
from jaxrobust.aggregation.reduction import Own, ReduceState, Reduction, Shared
from jaxrobust.aggregation.rules.distances import finite_rows
from jaxrobust.aggregation.rules.mean import mean
from jaxrobust.aggregation.suspicion import no_suspicion, suspect
from jaxrobust.typing import Array, AxisName, Codec, Key, Params, PyTree, Rule

_FLOAT32, _MEAN = float32(), mean()
# Messages of a vector longer than LONG are read so many at a time: a tile of a TPU's memory has so many rows.
TOGETHER = 8
# A slice of a long gradient fills whole tiles of a TPU's memory: else its compiler turns the gather of a group's slices
# into an all-reduce of the whole.
TILE = 1024


def all_reduce(
    axis_name: AxisName,
    *,
    codec: Codec = _FLOAT32,
    rule: Rule = _MEAN,
    broadcast_codec: Codec = _FLOAT32,
    key: Key | None = None,
    workers: int | None = None,
    inner_axis: str | None = None,
    inner_workers: int = 1,
) -> Reduction:
    r"""Reduce gradients over a mapped axis.

    .. math:: g = Q_2(F(Q(g_1), \dots, Q(g_n)))

    Worker i of N in step t rounds with `fold_in(fold_in(key, t), i)`; the rule draws with number N in place of i, equal
    on all workers, and the second hop with `fold_in(fold_in(fold_in(key, t), N + 1), i)`. With the defaults it is one
    `pmean`.

    Args:
      axis_name: the mapped axis, or several with the outermost first, as `("data", "worker")` where `"worker"` is a
        `vmap` inside a `shard_map` over `"data"`.
      codec: Q, how a worker's vector travels. Where it adapts, it observes the vectors before each encoding.
      rule: F, how the decoded vectors become one. A worker whose vector is not finite is left out.
      broadcast_codec: Q_2, how the result travels back; published runs send 32 bits. Its error is not divided by n:
        spend 8 bits where the codec has 4. Slices fill whole buckets: take buckets below the gradient's length over n.
      key: equal on all workers; needed by every codec but float32, and by rules that draw.
      workers: n, needed before the first step by what remembers columns: a rule such as `centered_clipping`, error
        feedback in the second hop.
      inner_axis: the mapped axis inside `axis_name` of the workers of one group, who average exactly; a rule then joins
        the groups' means, n of them, and a hostile worker is a hostile group.
      inner_workers: l, their number.

    Returns:
      A `Reduction`; its `update(gradients, state)` gives a tree like gradients, with their dtypes. The plain mean
      leaves nobody out: with one gradient that is not finite, neither is the mean.

    Raises:
      ValueError: for a codec other than float32 without a key, a memory of columns without the number of workers, or
        inner workers without their axis; in the first step, for a rule that draws without a key, or another number of
        workers than an axis has.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.aggregation import rules
      >>> reduce = all_reduce("data", rule=rules.median())
      >>> gradients = jnp.array([1.0, 2.0, 100.0])
      >>> state = jax.vmap(reduce.init)(gradients)  # one for each worker
      >>> for _ in range(2):
      ...     reduced, state = jax.vmap(reduce.update, axis_name="data")(gradients, state)
      >>> reduced.tolist()
      [2.0, 2.0, 2.0]
    """
    if key is None and (codec != _FLOAT32 or broadcast_codec != _FLOAT32):
        raise ValueError("key must be given for a codec other than float32, got None: pass jax.random.key(0)")
    remembers = {"rule": rule.init(2, 2), "broadcast_codec": broadcast_codec.init(2)[1]}
    for name, memory in remembers.items():
        if workers is None and jax.tree.leaves(memory):
            raise ValueError(f"workers must be given for a {name} that remembers its columns, got None")
    if inner_workers < 1 or (inner_axis is None and inner_workers > 1):
        raise ValueError(f"inner_workers must be positive, and 1 without an inner_axis, got {inner_workers}")
    every = axes.names(axis_name) + (() if inner_axis is None else (inner_axis,))
    combine = partial(_mean if rule == _MEAN else _median, axis=every)
    exact = codec == _FLOAT32 and rule == _MEAN and broadcast_codec == _FLOAT32

    def init(params: Params) -> ReduceState:
        dimension = _slice_size(sum(leaf.size for leaf in jax.tree.leaves(params)), inner_workers)
        columns = columns_of(dimension, codec.bucket_size, workers) if workers else 0
        (levels, memory), (back, memory_back) = codec.init(dimension), broadcast_codec.init(columns)
        shared = Shared(
            count=jnp.int32(0),
            codec=levels,
            broadcast=back,
            bits=jnp.float32(0),
            dropped=jnp.int32(0),
            suspicion=no_suspicion(),
        )
        return ReduceState(shared, Own(memory, rule.init(workers or 0, columns), memory_back, jnp.uint32(0)))

    def update(
        gradients: PyTree, state: ReduceState, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, ReduceState]:
        del params, extra
        number, total = axes.size(axis_name), axes.size(every)
        if workers not in (None, number):
            raise ValueError(f"workers must be the {number} of the axis {axis_name}, got {workers}")
        if total != number * inner_workers:
            raise ValueError(f"inner_workers must be the {total // number} of {inner_axis}, got {inner_workers}")
        # A tree without leaves has nothing to encode: a label that no leaf bears, say.
        if exact or not sum(leaf.size for leaf in jax.tree.leaves(gradients)):
            bits = wire_bits(gradients)
            shared = state.shared._replace(count=state.shared.count + 1, bits=_sent(total, bits, bits))
            return _mean(gradients, state, axis=every), ReduceState(shared, state.own)
        shared, own = axes.common(state.shared, every), state.own
        position, step_key = axes.position(every), _folded(key, shared.count)
        double = any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(gradients))
        wide = jnp.float64 if double else jnp.float32
        whole, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(wide), gradients))
        vector = whole if inner_axis is None else _mean_slice(whole, inner_axis, inner_workers)

        levels = codec.adapt(codec.observe(vector, (shared.codec, own.codec), every))
        message, memory = codec.encode(_folded(step_key, position), vector, (levels, own.codec))
        slices = jax.tree.map(lambda leaf: _cut(leaf, number), message)
        columns = _decoded(lambda part: codec.decode(part, levels), axes.exchange(slices, axis_name), vector.size)

        broken = axes.total(jnp.sum(~jnp.isfinite(columns), axis=1, dtype=jnp.int32), every)
        alive = broken == 0
        column, rule_memory, _ = rule.apply(_folded(step_key, total), columns, alive, own.rule, every)

        back = broadcast_codec.adapt(broadcast_codec.observe(column, (shared.broadcast, own.broadcast), every))
        back_key = _folded(_folded(step_key, total + 1), position)
        answer, memory_back = broadcast_codec.encode(back_key, column, (back, own.broadcast))
        answers = axes.gather(answer, axis_name)
        parts = _decoded(lambda part: broadcast_codec.decode(part, back)[: column.size], answers, vector.size)
        joined = parts.reshape(-1)[: vector.size]
        if inner_axis is not None:
            joined = axes.gather(joined, inner_axis).reshape(-1)[: whole.size]

        fingerprint = _fingerprint(vector)
        # Zeros once more are no gradient that is late.
        late = (fingerprint == own.fingerprint) & (fingerprint != 0)
        repeated = axes.gather(late, axis_name).astype(jnp.int32)
        # A group lags where all of its slices do.
        stale = (axes.total(repeated, every) == total) & (shared.count > 0)
        shared = Shared(
            count=shared.count + 1,
            codec=levels,
            broadcast=back,
            bits=_sent(number, wire_bits(slices), number * wire_bits(answer)),
            dropped=jnp.sum(~alive, dtype=jnp.int32),
            suspicion=suspect(columns, alive, stale, shared.suspicion, shared.count, every),
        )
        reduced = jax.tree.map(lambda new, leaf: new.astype(leaf.dtype), unravel(joined.astype(wide)), gradients)
        return reduced, ReduceState(shared, Own(memory, rule_memory, memory_back, fingerprint))

    return Reduction(init, update, combine, axis_name if inner_axis is None else every, rule == _MEAN, inner_axis)


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

    def joined(alive: Array) -> Array:
        return rule.apply(key, stacked, alive, rule.init(*stacked.shape), None)[0]

    if rule != _MEAN:
        return joined(finite_rows(stacked))
    # A mean shows by itself whether all rows were finite: it then reads them once, and not twice.
    whole = joined(jnp.ones(stacked.shape[0], bool))
    return jax.lax.cond(jnp.all(jnp.isfinite(whole)), lambda: whole, lambda: joined(finite_rows(stacked)))


def columns_of(dimension: int, bucket_size: int, workers: int) -> int:
    """How many coordinates one of the workers joins: whole buckets.

    Args:
      dimension: of the gradient.
      bucket_size: coordinates of a bucket.
      workers: n.

    Returns:
      The width of a slice, padding included.

    Example:
      >>> columns_of(100, bucket_size=8, workers=4)
      32
    """
    buckets = -(-dimension // bucket_size)
    return -(-buckets // workers) * bucket_size


def _cut(leaf: Array, parts: int) -> Array:
    """Entries of the leading axis, padded with zeros, in parts of equal length."""
    padded = jnp.pad(leaf, [(0, -leaf.shape[0] % parts)] + [(0, 0)] * (leaf.ndim - 1))
    return padded.reshape(parts, -1, *leaf.shape[1:])


def _decoded(decode: Callable[[PyTree], Array], messages: PyTree, dimension: int) -> Array:
    """Every worker's message read, `[n, m]`; long ones a few workers at a time, with copies of a few rows alone."""
    return jax.lax.map(decode, messages, batch_size=TOGETHER) if dimension > LONG else jax.vmap(decode)(messages)


def _slice_size(dimension: int, workers: int) -> int:
    """How many coordinates each worker of a group reduces with those of other groups."""
    size = -(-dimension // workers)
    return size if workers == 1 or size < TILE**2 // 8 else -(-size // TILE) * TILE


def _mean_slice(vector: Array, axis: str, workers: int) -> Array:
    """This worker's slice of the group's mean.

    An exchange and a sum, as a reduce-scatter is: a TPU's compiler turns a `psum_scatter` within groups into an
    all-reduce, which sends twice as much.
    """
    size = _slice_size(vector.size, workers)
    parts = jnp.pad(vector, (0, workers * size - vector.size)).reshape(workers, size)
    return jnp.mean(axes.exchange(parts, axis), axis=0)


def _fingerprint(vector: Array) -> Array:
    """A sum of hashes, of each word and its place: equal by chance once in four thousand million; 0 for zeros.

    The words themselves would not do: in a sum modulo 2^32 two changes of sign, its highest bit, cancel. The hash is
    the last step of MurmurHash3, whose constants are in the public domain.
    """
    words = jax.lax.bitcast_convert_type(vector.astype(jnp.float32), jnp.uint32)
    mixed = words + jnp.arange(vector.size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B1)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    # What is zero but for its sign is zero.
    return jnp.sum(jnp.where(words << 1 == 0, jnp.uint32(0), mixed ^ (mixed >> 16)), dtype=jnp.uint32)


def _sent(workers: int, first: int, second: int) -> Array:
    return jnp.float32((workers - 1) / workers * (first + second))


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
