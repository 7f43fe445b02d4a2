"""The joints: one experiment is a model and seven slots, and each slot holds a pure function.

    slot        type                                  a filled example: copy that file to add a member
    ---------   -----------------------------------   ------------------------------------------------
    data        Source(init, batch, refresh)          data/arrays.py, sampling/stratified.py
    augment     Augmentation(init, apply)             augment/noise_range.py
    objective   Objective(prepare, losses)            objectives/trades.py
    gradient    Estimator(init, estimate)             zeroth_order/random_directions.py
    reduce      optax.GradientTransformation          aggregation/codecs/qsgd.py, aggregation/rules/median.py
    optimizer   optax.GradientTransformation          implicit_bias/steepest_descent.py
    evaluate    (key, predict, source) -> Evaluated   attacks/accuracy.py

Data flows one way: source -> augment -> objective (an attack may sit inside) -> gradient -> reduce -> optimizer
-> evaluate -> report.

Conventions. Images are `[batch, height, width, channel]` floats in [0, 1]; normalization belongs to the model.
A key comes first and is used once. A function is written for one example where it can be, and mapped by its caller.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
"""A typed key, as `jax.random.key` makes it."""
PyTree: TypeAlias = Any
Params: TypeAlias = Any
State: TypeAlias = Any
AxisName: TypeAlias = str | tuple[str, ...]
"""One mapped axis, or several with the outermost first."""
Shape: TypeAlias = tuple[int, ...]
Metrics: TypeAlias = Mapping[str, Array]
Predict: TypeAlias = Callable[[Array], Array]
"""Inputs `[batch, ...]` to logits `[batch, class]`, in evaluation mode. The trainer passes a `jax.tree_util.Partial`,
so that it can be an argument of a jitted function."""


class Model(NamedTuple):
    """A network as two functions; what builds it (Linen, NNX, plain functions) stays behind them.

    Attributes:
      init: `(key, inputs) -> (params, state)`; state holds batch statistics, `{}` where there are none.
      apply: `(params, state, inputs, *, train) -> (outputs, state)`; outputs are float32 logits `[batch, class]`.
      over: `(axis_name) -> Model`, the same network whose batch statistics in training are means over a mapped axis;
        None where nothing is shared between examples.
    """

    init: Callable[[Key, PyTree], tuple[Params, State]]
    apply: Callable[..., tuple[PyTree, State]]
    over: Callable[[AxisName], "Model"] | None = None


class Batch(NamedTuple):
    """Examples of one step.

    Attributes:
      inputs: pytree with leaves `[batch, ...]`.
      targets: pytree with leaves `[batch, ...]`; integer classes `[batch]` in classification.
      index: `[batch]` int32, each example's number in its source: keys and clusters hang on it.
      weight: `[batch]` float32, the factor of each example's loss: importance weights have mean 1 over a source,
        padding has 0.

    A `Stream` gives NumPy arrays, a `Source` JAX arrays.
    """

    inputs: PyTree
    targets: PyTree
    index: Array | np.ndarray
    weight: Array | np.ndarray


def _keep(key: Key, state: State, predict: Predict) -> State:
    del key, predict
    return state


class Source(NamedTuple):
    """Examples that live on the device. Which ones come at a step depends on the key and the step alone.

    Attributes:
      init: `(key) -> state`; arrays that are passed to the jitted step, never constants within it.
      batch: `(state, step, rows, size) -> Batch` with `len(rows)` examples: those at positions `rows` (int32, each in
        [0, size)) of the step's global batch of `size`. A device asks for its own rows, so order does not depend on how
        many devices there are. Pure; runs inside the jitted step.
      size: number of examples; an epoch is `size` of them.
      fingerprint: hex SHA-256 of the examples; goes into a run's manifest.
      refresh: `(key, state, predict) -> state`; lets a sampler look at the model every few steps.
    """

    init: Callable[[Key], State]
    batch: Callable[[State, Array | int, Array, int], Batch]
    size: int
    fingerprint: str
    refresh: Callable[[Key, State, Predict], State] = _keep


class Stream(NamedTuple):
    """Examples that do not fit in device memory: each host reads its own rows.

    Attributes:
      batches: `(seed, step, size, process, processes) -> Iterator[Batch]` of NumPy batches, from `step` on: rows
        `[process * size / processes, (process + 1) * size / processes)` of each global batch of `size`. Order depends
        on seed and step alone, so the step is the whole of the iterator's state.
      size: number of examples.
      fingerprint: hex SHA-256 of what identifies the examples (name, version, shards' sizes).
      finish: `(keys [batch], inputs) -> inputs`, runs on the device inside the jitted step (crop, flip).
    """

    batches: Callable[[int, int, int, int, int], Iterator[Batch]]
    size: int
    fingerprint: str
    finish: Callable[[Array, PyTree], PyTree]


class Augmentation(NamedTuple):
    """A change of the inputs whose bounds are trained with the network.

    Attributes:
      init: `(key) -> params`; trained by the same optimizer, under the name `augment` beside `model`.
      apply: `(params, keys [batch], batch, step) -> (batch, penalty)`; the scalar penalty is added to the loss.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, Array, Batch, Array], tuple[Batch, Array]]


class Objective(NamedTuple):
    """What a step minimizes, in two parts.

    Attributes:
      prepare: `(keys [batch], model, params, state, batch) -> prepared`. Runs once a step at the base parameters and
        is never differentiated nor perturbed: the attack's delta, a weight perturbation, the clean prediction. It holds
        the delta and not the attacked image, so that gradients still reach the augmentation's bounds.
      losses: `(prepared, keys [batch], model, params, state, batch) -> (losses [batch], (state, metrics))`. State is
        the model's after the pass; metrics are scalars or `[batch]`.
      coupled: True where an example's loss depends on the others of its batch (contrastive losses). Such an objective
        takes neither sample weights, nor activation-level estimates, nor any rule other than the mean.
    """

    prepare: Callable[[Array, Model, Params, State, Batch], PyTree]
    losses: Callable[[PyTree, Array, Model, Params, State, Batch], tuple[Array, tuple[State, Metrics]]]
    coupled: bool = False


class Estimate(NamedTuple):
    """What an estimator found.

    Attributes:
      value: the function's value at params, scalar (the mean where it gives `[batch]`).
      gradient: pytree like params.
      queries: int32 scalar, how many times the function was evaluated; a backward pass counts 0.
      aux: the function's second output at params, None without `has_aux`.
      state: the estimator's next state.
    """

    value: Array
    gradient: PyTree
    queries: Array
    aux: Any
    state: State


class ValueFunction(Protocol):
    """A scalar or `[batch]` function of a pytree; with `has_aux` a pair, the second part any pytree."""

    def __call__(self, params: Params, /) -> Any:
        """Evaluate at params."""


@dataclass(frozen=True)
class Estimator:
    """A way to a gradient: `estimator(key, value_fn, params)`.

    Attributes:
      init: `(params) -> state`.
      estimate: `(key, value_fn, params, state) -> Estimate` for a value_fn that gives `(values, aux)`.
      separable: True where the gradient of a sum is the sum of gradients whatever the size of params, as with backprop:
        an attack then gives the whole batch of images at once instead of mapping over them.
      draws: True where it uses its key.
    """

    init: Callable[[Params], State]
    estimate: Callable[[Key, Callable[[Params], tuple[Array, Any]], Params, State], Estimate]
    separable: bool = False
    draws: bool = False

    def __call__(
        self, key: Key, value_fn: ValueFunction, params: Params, state: State = None, *, has_aux: bool = False
    ) -> Estimate:
        """Estimate the gradient of value_fn's mean at params.

        Args:
          key: the source of randomness; estimators without any ignore it.
          value_fn: `(params) -> values`, scalar or `[batch]`, or `(values, aux)` with `has_aux`.
          params: pytree of floating-point leaves.
          state: what `init` or the last estimate gave; None starts afresh.
          has_aux: whether value_fn gives a pair.

        Returns:
          An `Estimate`.
        """

        def with_aux(point: Params) -> tuple[Array, Any]:
            return value_fn(point) if has_aux else (value_fn(point), None)

        params = jax.tree.map(jnp.asarray, params)
        return self.estimate(key, with_aux, params, self.init(params) if state is None else state)


def backprop() -> Estimator:
    """The exact gradient, by reverse-mode differentiation; the default of the gradient slot.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.typing import backprop
      >>> backprop()(jax.random.key(0), lambda x: x**2, jnp.array([1.0, 3.0])).gradient.tolist()
      [1.0, 3.0]
    """

    def estimate(key: Key, value_fn: Callable[[Params], tuple[Array, Any]], params: Params, state: State) -> Estimate:
        del key

        def mean(point: Params) -> tuple[Array, Any]:
            values, aux = value_fn(point)
            return jnp.mean(values), aux

        (value, aux), gradient = jax.value_and_grad(mean, has_aux=True)(params)
        return Estimate(value, gradient, jnp.int32(1), aux, state)

    return Estimator(init=lambda params: (), estimate=estimate, separable=True)


class Codec(NamedTuple):
    """How a vector travels.

    State is a pair `(shared, own)`: shared (levels) is equal by value on all workers, own (error memory) each worker's.

    A message is a pytree whose leaves all have a leading axis of `ceil(d / bucket_size)` buckets, so that it can be cut
    between any two of them; it is padded by buckets of zero bytes, which decode to finite numbers.

    Attributes:
      init: `(dimension) -> (shared, own)`.
      encode: `(key, x [d], state) -> (wire, own)`; wire is a pytree of packed uint8 codes and scales. `own` is the next
        memory.
      decode: `(wire, shared) -> x [buckets * bucket_size]`, of any number of buckets; padding is sliced off by the
        caller.
      observe: `(x [d], state, axis) -> shared`; gathers statistics over the axis.
      adapt: `(shared) -> shared`; moves levels to fit the statistics.
      bucket_size: coordinates that share an entry of the leading axis.
    """

    init: Callable[[int], tuple[State, State]]
    encode: Callable[[Key, Array, tuple[State, State]], tuple[PyTree, State]]
    decode: Callable[[PyTree, State], Array]
    observe: Callable[[Array, tuple[State, State], AxisName], State]
    adapt: Callable[[State], State]
    bucket_size: int = 1


class Rule(NamedTuple):
    """How n vectors become one.

    Attributes:
      init: `(workers, columns) -> state`: of the worker that joins so many columns, and that worker's own. The workers
        are 0 where their number is known within the axis alone; a rule without memory gives ().
      apply: `(key, columns [n, m], alive [n], state, axis) -> (column [m], state, weights [n])`; a worker that is not
        alive is left out. The key is None where the caller gave none, and else equal wherever columns are joined.
        `axis` is the axis over which the vectors' columns are split, None where they are whole: what a rule needs of
        whole vectors it takes by one sum over it. `weights` is each worker's share in the result, equal everywhere.
    """

    init: Callable[[int, int], State]
    apply: Callable[[Key | None, Array, Array, State, AxisName | None], tuple[Array, State, Array]]


class Gallery(NamedTuple):
    """Images that an attack changed, for people to look at.

    Attributes:
      images: `[n, height, width, channel]` in [0, 1].
      adversarial: the same after the attack.
      labels: `[n]` the true classes.
      clean: `[n]` the class predicted before.
      attacked: `[n]` the class predicted after.
    """

    images: np.ndarray
    adversarial: np.ndarray
    labels: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray


class Evaluated(NamedTuple):
    """What an evaluation found.

    Attributes:
      metrics: name -> number; shares in [0, 1], or errors, whose name then holds "loss".
      curve: radius -> robust accuracy in [0, 1]; empty where none was asked for.
      gallery: None where none was asked for.
    """

    metrics: Mapping[str, float]
    curve: Mapping[float, float]
    gallery: Gallery | None


Evaluation: TypeAlias = Callable[[Key, Predict, Source], Evaluated]

Attack: TypeAlias = Callable[[Array, Predict, Array, PyTree], Array]
"""`(key or keys [batch], logits_fn, images [batch, ...], labels) -> images`: each within the radius and in [0, 1]."""
Loss: TypeAlias = Callable[[Array, PyTree], Array]
"""`(logits [batch, class], labels) -> [batch]`; an attack maximizes it."""
