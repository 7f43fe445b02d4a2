"""Two plain functions as a `Model`: for networks without a framework and without batch statistics."""

from collections.abc import Callable, Sequence

from jaxrobust.models.boundary import bounded
from jaxrobust.typing import Key, Model, Params, PyTree, State


def function(
    init: Callable[[Key, PyTree], Params],
    apply: Callable[[Params, PyTree], PyTree],
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Model:
    """Wrap a function of parameters and inputs.

    `logits = apply(params, (inputs - mean) / std)`, the same in training and in evaluation; the state is `{}`.

    Args:
      init: `(key, inputs) -> params`; params is any pytree of floating-point arrays.
      apply: `(params, inputs [batch, ...]) -> logits [batch, class]`.
      mean: subtracted from each channel of the inputs, which are in [0, 1]; None for 0.
      std: divides each channel; None for 1.

    Returns:
      A `Model` with outputs of at least float32.

    Raises:
      ValueError: if init or apply cannot be called, or std is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> linear = models.function(lambda key, x: jnp.eye(x.shape[-1]), lambda params, x: x @ params)
      >>> params, state = linear.init(jax.random.key(0), jnp.zeros([1, 2]))
      >>> linear.apply(params, state, jnp.array([[3.0, 4.0]]), train=False)[0].tolist()
      [[3.0, 4.0]]
    """
    for name, given in (("init", init), ("apply", apply)):
        if not callable(given):
            raise ValueError(f"{name} must be a function, got {given!r}")

    def start(key: Key, inputs: PyTree) -> tuple[Params, State]:
        return init(key, inputs), {}

    def run(params: Params, state: State, inputs: PyTree, *, train: bool) -> tuple[PyTree, State]:
        del train
        return apply(params, inputs), state

    return bounded(start, run, None, mean=mean, std=std)
