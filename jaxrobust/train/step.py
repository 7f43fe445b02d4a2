"""One training step, from a batch to new parameters; the flow of data through the seven slots.

    rows of the worker -> source -> augment -> objective (prepare, losses) -> gradient -> reduce -> optimizer

A step runs under `shard_map` over the axis `data`, one worker per device, or several that a `vmap` over the axis
`worker` plays, or one that the devices along the axis `member` form. Replication checks are off (`check_vma=False`):
with them, differentiating a local loss with respect to replicated parameters sums over the axis by itself, and every
codec and rule would see equal gradients.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import joined_value
from jaxrobust.aggregation.axes import names, position
from jaxrobust.train.experiment import DATA, MEMBER, WORKER, Experiment, is_mean
from jaxrobust.typing import Array, AxisName, Batch, Key, Metrics, Params, PyTree, State, Stream

SUSPICION = ("suspicions", "suspect", "suspect_step")
"""What a reduction says of workers that stood out: how often one did, the last one's number, and in which step."""


class TrainState(NamedTuple):
    """All that a step changes and every worker shares.

    Attributes:
      step: int32, updates done.
      failed: int32, the first step whose update was not finite; -1 while there is none.
      key: the root of the run's randomness; step and example numbers are folded in.
      params: `{"augment": ..., "model": ...}`.
      average: moving average of params, () without one.
      model: the model's state (batch statistics).
      gradient: the estimator's state.
      optimizer: the optimizer's state.
    """

    step: Array
    failed: Array
    key: Key
    params: Params
    average: Params
    model: State
    gradient: State
    optimizer: optax.OptState


class Trainer(NamedTuple):
    """An experiment made ready for certain devices.

    Attributes:
      mesh: the devices, over the axis `data`, or over `data` and `member`.
      init: `() -> (TrainState, reduction state with a leading axis of workers)`, placed on the mesh.
      step: `(state, reduction, source state, fed batch) -> (state, reduction, metrics)`, jitted; the first two
        arguments are donated. The fed batch is () for a `Source`, and the source state is () for a `Stream`.
      logits: `(params, state, inputs) -> logits` in evaluation mode.
      workers: their number.
    """

    mesh: Mesh
    init: Callable[[], tuple[TrainState, State]]
    step: Callable[..., tuple[TrainState, State, Metrics]]
    logits: Callable[[Params, State, PyTree], Array]
    workers: int

    @property
    def split(self) -> NamedSharding:
        """How the rows of a batch lie on the devices."""
        return NamedSharding(self.mesh, P(self.mesh.axis_names))

    def place(self, tree: PyTree) -> PyTree:
        """Put values that every process has on the mesh, the same on every device."""
        sharding = NamedSharding(self.mesh, P())

        def put(leaf: Any) -> Array:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
            if sharding.is_fully_addressable:
                return jax.device_put(leaf, sharding)
            host = np.asarray(leaf)
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        return jax.tree.map(put, tree)


def make_mesh(devices: list[jax.Device] | None = None, devices_per_worker: int = 1) -> Mesh:
    """The mesh of a run: the axis `data`, and inside it `member` where several devices form one worker.

    Args:
      devices: all of them by default, of every process.
      devices_per_worker: as in `Experiment`.

    Returns:
      The mesh; the members of a worker belong to one process where that comes out even.

    Raises:
      ValueError: if the devices do not come out even.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % devices_per_worker:
        raise ValueError(f"devices_per_worker must divide the {len(devices)} devices, got {devices_per_worker}")
    if devices_per_worker == 1:
        return jax.make_mesh((len(devices),), (DATA,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    # The devices of one host belong together, whatever order a torus has.
    by_host = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(by_host).reshape(-1, devices_per_worker), (DATA, MEMBER))


def prepare_training(experiment: Experiment, mesh: Mesh | None = None) -> Trainer:
    """Build the jitted step and the initial state of an experiment.

    Args:
      experiment: what to train.
      mesh: as `make_mesh` gives it, the default over all devices.

    Returns:
      A `Trainer`.

    Raises:
      ValueError: if the workers do not divide the batch, or the reduction does not span all of their axes.
    """
    mesh = make_mesh(devices_per_worker=experiment.devices_per_worker) if mesh is None else mesh
    if mesh.shape.get(MEMBER, 1) != experiment.devices_per_worker:
        raise ValueError(
            f"mesh must have {experiment.devices_per_worker} devices along the axis {MEMBER}, got the axes "
            f"{dict(mesh.shape)}: make_mesh(devices, {experiment.devices_per_worker})"
        )
    workers = mesh.size * experiment.workers_per_device
    parts = workers * experiment.accumulation
    if experiment.batch_size % parts:
        raise ValueError(
            f"batch_size must be a multiple of {parts} ({mesh.size} devices x {experiment.workers_per_device} workers "
            f"x {experiment.accumulation} parts), got {experiment.batch_size}: take "
            f"{max(1, round(experiment.batch_size / parts)) * parts}"
        )
    rows = P(mesh.axis_names)
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, rows)

    def init() -> tuple[TrainState, State]:
        return _initial(experiment, workers)

    def device_step(state: TrainState, reduction: State, source: State, fed: PyTree) -> tuple:
        step = partial(_worker_step, experiment, workers)
        if experiment.workers_per_device == 1:
            first = jax.tree.map(lambda leaf: leaf[0], reduction)
            state, own, metrics = step(state, first, source, fed)
            return state, jax.tree.map(lambda leaf: leaf[None], own), metrics
        per_worker = jax.tree.map(lambda leaf: leaf.reshape(experiment.workers_per_device, -1, *leaf.shape[1:]), fed)
        mapped = jax.vmap(step, in_axes=(None, 0, None, 0), out_axes=(None, 0, None), axis_name=WORKER)
        return mapped(state, reduction, source, per_worker)

    sharded = jax.shard_map(
        device_step,
        mesh=mesh,
        in_specs=(P(), rows, P(), rows),
        out_specs=(P(), rows, P()),
        check_vma=False,
    )

    message = (
        f"with workers_per_device={experiment.workers_per_device} and devices_per_worker="
        f"{experiment.devices_per_worker} the reduction must span the axes {experiment.axes}: the workers' parameters "
        f"would part"
    )
    if set(names(getattr(experiment.reduction, "axis", experiment.axes))) != set(names(experiment.axes)):
        raise ValueError(message)

    def spanning(*arguments: Any) -> tuple:
        try:
            return sharded(*arguments)
        except ValueError as error:
            if "out_axes" in str(error):
                raise ValueError(message) from error
            raise

    return Trainer(
        mesh=mesh,
        init=jax.jit(init, out_shardings=(replicated, split)),
        step=jax.jit(spanning, donate_argnums=(0, 1)),
        logits=lambda params, state, inputs: experiment.model.apply(params, state, inputs, train=False)[0],
        workers=workers,
    )


def example_inputs(experiment: Experiment) -> PyTree:
    """Shapes and dtypes of one input, `[1, ...]`, without reading any data onto a device."""
    if isinstance(experiment.data, Stream):
        batch = next(experiment.data.batches(experiment.seed, 0, 1, 0, 1))
        keys = jax.random.split(jax.random.key(0), 1)
        return jax.eval_shape(experiment.data.finish, keys, jax.tree.map(jnp.asarray, batch.inputs))
    source = experiment.data
    state = jax.eval_shape(source.init, jax.random.key(0))
    return jax.eval_shape(lambda s: source.batch(s, 0, jnp.zeros(1, jnp.int32), experiment.batch_size), state).inputs


class RunKeys(NamedTuple):
    """The roots of a run's randomness: of parameters, data order, steps, evaluations and samplers' refreshes; of a
    reduction's rounding and drawing, and of attackers."""

    init: Key
    data: Key
    steps: Key
    evaluation: Key
    refresh: Key
    reduction: Key
    attack: Key


def keys_of_run(seed: int) -> RunKeys:
    """The keys that a run draws from, by its seed."""
    return RunKeys(*jax.random.split(jax.random.key(seed), 7))


def _initial(experiment: Experiment, workers: int) -> tuple[TrainState, State]:
    keys = keys_of_run(experiment.seed)
    inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example_inputs(experiment))
    model_key, augment_key = jax.random.split(keys.init)
    model, model_state = experiment.model.init(model_key, inputs)
    params = {"augment": experiment.augment.init(augment_key), "model": model}
    own = experiment.reduction.init(params)
    state = TrainState(
        step=jnp.int32(0),
        failed=jnp.int32(-1),
        key=keys.steps,
        params=params,
        average=() if experiment.average is None else params,
        model=model_state,
        gradient=experiment.gradient.init(params),
        optimizer=experiment.optimizer.init(params),
    )
    return state, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (workers, *jnp.shape(leaf))), own)


def _worker_step(
    experiment: Experiment, workers: int, state: TrainState, reduction: State, source: State, fed: PyTree
) -> tuple[TrainState, State, Metrics]:
    axes, key = experiment.axes, jax.random.fold_in(state.key, state.step)
    over = experiment.model.over if is_mean(experiment.reduction) else None
    model = experiment.model if over is None else over(axes)
    gradient_key = jax.random.fold_in(key, 0)

    def prepare(part: Array, base: State) -> PyTree:
        """What the objective needs of one part of the worker's share of the batch: once, at the base parameters."""
        batch = _part_of_batch(experiment, workers, part, state, source, fed)
        augment_keys, prepare_keys = (_per_example(jax.random.fold_in(key, i), batch) for i in (1, 2))
        plain, _ = experiment.augment.apply(state.params["augment"], augment_keys, batch, state.step)
        prepared = experiment.objective.prepare(prepare_keys, model, state.params["model"], base, plain)
        return jax.lax.stop_gradient(prepared)

    def values(part: Array, base: State, prepared: PyTree) -> Callable[[Params], tuple[Array, tuple[State, Metrics]]]:
        """The losses of that part, as a function of the parameters."""
        batch = _part_of_batch(experiment, workers, part, state, source, fed)
        augment_keys, loss_keys = (_per_example(jax.random.fold_in(key, i), batch) for i in (1, 3))

        def value(params: Params) -> tuple[Array, tuple[State, Metrics]]:
            augmented, penalty = experiment.augment.apply(params["augment"], augment_keys, batch, state.step)
            losses, (after, metrics) = experiment.objective.losses(
                prepared, loss_keys, model, params["model"], base, augmented
            )
            means = {name: jnp.mean(metric) for name, metric in metrics.items()}
            return losses * batch.weight.astype(losses.dtype) + penalty, (after, {**means, "penalty": penalty})

        return value

    def estimate(carry: tuple[State, State], part: Array) -> tuple[tuple[State, State], tuple]:
        base, memory = carry
        prepared = prepare(part, base)
        found = experiment.gradient(gradient_key, values(part, base, prepared), state.params, memory, has_aux=True)
        after, metrics = found.aux
        metrics = {"loss": found.value, **metrics}
        return (after, found.state), (found.gradient, metrics, found.queries, prepared)

    parts = jnp.arange(experiment.accumulation)
    if experiment.accumulation == 1:
        (model_state, memory), found = estimate((state.model, state.gradient), parts[0])
        gradient, metrics, queries, prepared = found
        prepared = jax.tree.map(lambda leaf: leaf[None], prepared)
    else:
        (model_state, memory), found = jax.lax.scan(estimate, (state.model, state.gradient), parts)
        gradient, metrics, queries, prepared = found
        gradient, metrics = jax.tree.map(lambda leaf: jnp.mean(leaf, 0), (gradient, metrics))
        queries = jnp.sum(queries)

    reduced, reduction = experiment.reduction.update(gradient, reduction, state.params)
    combine = getattr(experiment.reduction, "combine", None) or partial(_mean, axis=axes)
    metrics, model_state = combine(metrics, reduction), _combine_state(combine, model_state, reduction, axes)

    def own_value(params: Params) -> Array:
        losses = jax.lax.map(lambda item: jnp.mean(values(item[0], state.model, item[1])(params)[0]), (parts, prepared))
        return jnp.mean(losses)

    value_fn = joined_value(own_value, lambda tree: combine(tree, reduction))

    update = experiment.optimizer.update
    extra = _accepted(update, {"value": metrics["loss"], "grad": reduced, "value_fn": value_fn})
    updates, optimizer = update(reduced, state.optimizer, state.params, **extra)
    params = optax.apply_updates(state.params, updates)
    average = experiment.average(state.step, state.average, params) if experiment.average else ()
    norm = optax.tree.norm(updates)
    metrics = {
        **metrics,
        "gradient_norm": optax.tree.norm(reduced),
        "update_norm": norm,
        "queries": queries,
        **_reported(reduction, axes),
    }
    # A step that an optimizer refused to take (`apply_if_finite`) has a zero update: the run goes on, and what the
    # batch did to the statistics is undone with it.
    refused = ~jnp.isfinite(metrics["loss"]) & (norm == 0)
    model_state, memory = jax.tree.map(
        lambda new, old: jnp.where(refused, old, new), (model_state, memory), (state.model, state.gradient)
    )
    bad = ~jnp.isfinite(norm) | ~(jnp.isfinite(metrics["loss"]) | refused)
    failed = jnp.where((state.failed < 0) & bad, state.step, state.failed)
    state = TrainState(state.step + 1, failed, state.key, params, average, model_state, memory, optimizer)
    return state, reduction, metrics


def _accepted(function: Callable, extra: dict[str, Any]) -> dict[str, Any]:
    """Those of the extra arguments that a function takes; some of optax's declare to take any, and do not."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return extra
    taken = {parameter.name for parameter in parameters}
    return {name: value for name, value in extra.items() if name in taken}


def _part_of_batch(
    experiment: Experiment, workers: int, part: Array, state: TrainState, source: State, fed: PyTree
) -> Batch:
    """One of `accumulation` parts of this worker's rows; a part of the whole batch is the same on any device count."""
    rows = experiment.batch_size // (workers * experiment.accumulation)
    worker = position(experiment.axes)
    if not isinstance(experiment.data, Stream):
        first = part * (experiment.batch_size // experiment.accumulation) + worker * rows
        return experiment.data.batch(source, state.step, first + jnp.arange(rows), experiment.batch_size)
    batch = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, part * rows, rows), fed)
    keys = _per_example(jax.random.fold_in(jax.random.fold_in(state.key, state.step), 4), batch)
    return batch._replace(inputs=experiment.data.finish(keys, batch.inputs))


def _per_example(key: Key, batch: Batch) -> Array:
    return jax.vmap(partial(jax.random.fold_in, key))(batch.index)


def _mean(tree: PyTree, state: State, *, axis: AxisName) -> PyTree:
    del state
    return jax.lax.pmean(tree, axis)


def _combine_state(combine: Callable, tree: State, reduction: State, axes: AxisName) -> State:
    """Statistics by the reduction's own way; counters, which are equal everywhere, by their largest."""
    leaves, structure = jax.tree.flatten(tree)
    inexact = {i: leaf for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    combined = combine(inexact, reduction) if inexact else {}
    return jax.tree.unflatten(
        structure, [combined[i] if i in combined else jax.lax.pmax(leaf, axes) for i, leaf in enumerate(leaves)]
    )


def _reported(reduction: State, axes: AxisName) -> Metrics:
    """What a reduction counts and shares: bits sent by a worker in a step, workers left out, who stood out and when."""
    found = {}
    for name in ("bits", "dropped", *SUSPICION):
        values = [value for _, value in optax.tree_utils.tree_get_all_with_path(reduction, name)]
        if values:
            # Equal on all workers; their largest is one value for the whole step.
            found[name] = jax.lax.pmax(values[0], axes)
    return found


def parameter_count(state: TrainState) -> int:
    """Number of trained numbers."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params))


def model_of(state: TrainState) -> tuple[Params, State]:
    """Parameters (their average where there is one) and state to evaluate with."""
    chosen = state.average if jax.tree.leaves(state.average) else state.params
    return chosen["model"], state.model
