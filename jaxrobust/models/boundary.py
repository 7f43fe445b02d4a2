"""The two ends of a network, the same for whatever framework built it.

    outputs = widen(f(params, state, (inputs - mean) / std))

Images come in [0, 1] and are normalized within the network, so that an attack's radius is in units of pixels.
Outputs are at least float32, whatever the network computes in, and the state keeps its dtypes from step to step.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.precision import widened
from jaxrobust.typing import Array, AxisName, Key, Model, Params, PyTree, State

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of each channel (red, green, blue) of CIFAR-10's training images, in units of [0, 1]."""
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
"""Standard deviation of each channel of CIFAR-10's training images, in units of [0, 1]."""


def bounded(
    init: Callable[[Key, PyTree], tuple[Params, State]],
    apply: Callable[..., tuple[PyTree, State]],
    over: Callable[[AxisName], Callable[..., tuple[PyTree, State]]] | None,
    *,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
) -> Model:
    """Make a `Model` of a bare network.

    Args:
      init: `(key, inputs) -> (params, state)`.
      apply: `(params, state, inputs, *, train) -> (outputs, state)` of normalized inputs, bound to no axis.
      over: `(axis_name) -> apply` with statistics over the axis; None where nothing is shared between examples.
      mean: subtracted from each channel, `[channel]` or one number for all; None for 0.
      std: divides each channel, `[channel]` or one number for all; None for 1.

    Returns:
      A `Model` that takes inputs in [0, 1] and returns outputs of at least float32.

    Raises:
      ValueError: if mean or std are not finite, or std is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.models.boundary import bounded
      >>> model = bounded(None, lambda params, state, inputs, train: (inputs, state), None, mean=(0.5,), std=(0.25,))
      >>> model.apply({}, {}, jnp.ones([1, 1], jnp.bfloat16), train=False)[0].tolist()
      [[2.0]]
    """
    normalize = _normalizer(mean, std)

    def start(key: Key, inputs: PyTree) -> tuple[Params, State]:
        normal = normalize(inputs)
        params, state = init(key, normal)
        if not jax.tree.leaves(state):
            return params, state
        # In 64 bits a layer may start its statistics in float32 and continue in float64: start them as they go on.
        after = jax.eval_shape(lambda *arguments: apply(*arguments, train=True)[1], params, state, normal)
        return params, jax.tree.map(_as_wide_as, state, after)

    def build(apply: Callable[..., tuple[PyTree, State]]) -> Model:
        def run(params: Params, state: State, inputs: PyTree, *, train: bool) -> tuple[PyTree, State]:
            outputs, after = apply(params, state, normalize(inputs), train=train)
            if train:
                after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, state)
            return jax.tree.map(_widen, outputs), after

        return Model(start, run, None if over is None else lambda axis_name: build(over(axis_name)))

    return build(apply)


def _normalizer(
    mean: Sequence[float] | float | None, std: Sequence[float] | float | None
) -> Callable[[PyTree], PyTree]:
    for name, numbers in (("mean", mean), ("std", std)):
        if numbers is not None and (np.ndim(numbers) > 1 or not np.all(np.isfinite(numbers))):
            raise ValueError(f"{name} must be one finite number for each channel, got {numbers}")
    if std is not None and not np.all(np.asarray(std) > 0):
        raise ValueError(f"std must be positive, got {std}: leave constant channels out, or give them 1")
    if mean is None and std is None:
        return lambda inputs: inputs

    def channels(name: str, numbers: Sequence[float] | float, inputs: Array) -> Array:
        count = np.size(numbers)
        if np.ndim(numbers) and count not in (1, inputs.shape[-1]):
            raise ValueError(
                f"{name} must have one number for each of {inputs.shape[-1]} channels, got {count}: inputs are "
                f"[batch, ..., channel], here {inputs.shape}"
            )
        return jnp.asarray(numbers, inputs.dtype)

    def normalize(inputs: Array) -> Array:
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ValueError(f"inputs must be floats in [0, 1], got {inputs.dtype}: divide by the largest value")
        if mean is not None:
            inputs = inputs - channels("mean", mean, inputs)
        return inputs if std is None else inputs / channels("std", std, inputs)

    return normalize


def _widen(leaf: Array) -> Array:
    return widened(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _as_wide_as(leaf: Array, other: jax.ShapeDtypeStruct) -> Array:
    wider = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(other.dtype).bits > jnp.finfo(leaf.dtype).bits
    return leaf.astype(other.dtype) if wider else leaf
