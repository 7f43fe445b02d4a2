"""A Flax Linen module as a `Model`.

params = variables["params"]        state = the other collections, such as batch statistics
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence

import flax.linen as nn

from jaxrobust.models.boundary import bounded
from jaxrobust.typing import AxisName, Key, Model, Params, PyTree, State


def linen(
    module: nn.Module, *, mean: Sequence[float] | float | None = None, std: Sequence[float] | float | None = None
) -> Model:
    """Wrap a Linen module whose `__call__` takes `(inputs, train)`.

    `logits = module((inputs - mean) / std, train)`. What the module keeps beside its parameters, such as the running
    statistics of batch norm, is the model's state: explicit, updated in training, unchanged in evaluation.

    A module with a field `axis_name`, None by default, that it passes to its `nn.BatchNorm` layers, gets `over`: in
    training their statistics are then means over a mapped axis. Without the field each worker normalizes by its own
    share of the batch. `Model.apply` takes no key, so layers that draw random numbers in training (dropout) do not
    work: Flax says so when they are called.

    Args:
      module: a module, not bound.
      mean: subtracted from each channel of the inputs, which are in [0, 1]; None for 0.
      std: divides each channel; None for 1.

    Returns:
      A `Model` with outputs of at least float32.

    Raises:
      ValueError: if `module` is no Linen module or does not take `train`, or std is not positive.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> class Net(nn.Module):
      ...     axis_name: str | None = None
      ...     @nn.compact
      ...     def __call__(self, x, train):
      ...         return nn.Dense(10)(nn.BatchNorm(not train, axis_name=self.axis_name)(x))
      >>> model = models.linen(Net())
      >>> params, state = model.init(jax.random.key(0), jnp.zeros([1, 4]))
      >>> logits, state = model.apply(params, state, jnp.ones([8, 4]), train=True)
      >>> logits.shape, round(float(state["batch_stats"]["BatchNorm_0"]["mean"][0]), 4)
      ((8, 10), 0.01)
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a flax.linen.Module, got {module!r}: build it first, as in linen(Net())")
    if "train" not in inspect.signature(module.__call__).parameters:
        raise ValueError(
            f"module must take (inputs, train), got {type(module).__name__}{inspect.signature(module.__call__)}: "
            "add the argument `train`, even if it changes nothing"
        )
    shares = any(field.name == "axis_name" for field in dataclasses.fields(module))
    alone = module.clone(axis_name=None) if shares else module

    def init(key: Key, inputs: PyTree) -> tuple[Params, State]:
        variables = dict(alone.init(key, inputs, train=False))
        return variables.pop("params", {}), variables

    def applying(network: nn.Module) -> Callable[..., tuple[PyTree, State]]:
        def apply(params: Params, state: State, inputs: PyTree, *, train: bool) -> tuple[PyTree, State]:
            variables = {"params": params, **state}
            if not train:
                return network.apply(variables, inputs, train=False), state
            outputs, updated = network.apply(variables, inputs, train=True, mutable=list(state))
            return outputs, {**state, **updated}

        return apply

    def over(axis_name: AxisName) -> Callable[..., tuple[PyTree, State]]:
        return applying(module.clone(axis_name=axis_name))

    model = bounded(init, applying(alone), over if shares else None, mean=mean, std=std)
    return model if model.over is None or module.axis_name is None else model.over(module.axis_name)
