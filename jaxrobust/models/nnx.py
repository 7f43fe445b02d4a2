"""A Flax NNX module as a `Model`.

    params = its `nnx.Param` variables        state = its other variables (batch statistics, random streams)

Both are nested dictionaries of arrays with text keys, so that optax and checkpoints need not know of NNX. A random
stream (of dropout) is kept as its key's data, because collectives and checkpoints take integers and not keys.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.nnx as flax_nnx
import jax

from jaxrobust.models.boundary import bounded
from jaxrobust.typing import Array, AxisName, Key, Model, Params, PyTree, State


def nnx(
    module: Callable[[flax_nnx.Rngs], flax_nnx.Module] | flax_nnx.Module,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Model:
    """Wrap an NNX module.

    `logits = module((inputs - mean) / std)`, after `module.train()` in training and `module.eval()` else. Where it has
    layers of batch norm, the model gets `over`: in training their statistics are then means over a mapped axis.
    Random streams advance in training, and are the same for every worker.

    Args:
      module: what builds the module from a `nnx.Rngs`, so that `Model.init` draws its parameters from a key; or a
        module whose own parameters (pretrained, say) `Model.init` returns, whatever the key.
      mean: subtracted from each channel of the inputs, which are in [0, 1]; None for 0.
      std: divides each channel; None for 1.

    Returns:
      A `Model` with outputs of at least float32.

    Raises:
      ValueError: if `module` neither is nor builds an NNX module, or std is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxrobust import models
      >>> model = models.nnx(lambda rngs: nnx.Linear(4, 10, rngs=rngs))
      >>> params, state = model.init(jax.random.key(0), jnp.zeros([1, 4]))
      >>> sorted(params), state, model.apply(params, state, jnp.ones([8, 4]), train=False)[0].shape
      (['bias', 'kernel'], {}, (8, 10))
    """
    if isinstance(module, flax_nnx.Module):
        kept = flax_nnx.clone(module)

        def make(rngs: flax_nnx.Rngs) -> flax_nnx.Module:
            return flax_nnx.clone(kept)
    elif callable(module) and not isinstance(module, type):
        make = module
    else:
        raise ValueError(
            f"module must be an NNX module or build one from rngs, got {module!r}: "
            "write nnx(lambda rngs: Net(rngs=rngs))"
        )
    outline = flax_nnx.eval_shape(lambda: make(flax_nnx.Rngs(0)))
    if not isinstance(outline, flax_nnx.Module):
        raise ValueError(f"module must build an NNX module, got {type(outline).__name__}: return the module itself")
    shares = any(isinstance(node, flax_nnx.BatchNorm) for _, node in flax_nnx.iter_modules(outline))

    def init(key: Key, inputs: PyTree) -> tuple[Params, State]:
        del inputs
        _, params, state = flax_nnx.split(make(flax_nnx.Rngs(key)), flax_nnx.Param, ...)
        return _plain(params), _plain(state)

    def applying(outline: flax_nnx.Module) -> Callable[..., tuple[PyTree, State]]:
        graphs = {}
        for train in (True, False):
            (outline.train if train else outline.eval)()
            graphs[train], *templates = flax_nnx.split(outline, flax_nnx.Param, ...)

        def apply(params: Params, state: State, inputs: PyTree, *, train: bool) -> tuple[PyTree, State]:
            filled = (_fill(template, tree) for template, tree in zip(templates, (params, state), strict=True))
            network = flax_nnx.merge(graphs[train], *filled)
            outputs = network(inputs)
            if not train:
                return outputs, state
            _, _, after = flax_nnx.split(network, flax_nnx.Param, ...)
            return outputs, _plain(after)

        return apply

    def over(axis_name: AxisName) -> Callable[..., tuple[PyTree, State]]:
        return applying(flax_nnx.with_attributes(outline, only=flax_nnx.BatchNorm, axis_name=axis_name))

    return bounded(init, applying(outline), over if shares else None, mean=mean, std=std)


def _plain(variables: flax_nnx.State) -> PyTree:
    """Nested dictionaries of arrays. Positions in a list become text: the keys of a dictionary are of one type."""
    tree: dict[str, Any] = {}
    for path, variable in flax_nnx.to_flat_state(variables):
        node, value = tree, variable.get_value()
        for name in path[:-1]:
            node = node.setdefault(str(name), {})
        node[str(path[-1])] = jax.random.key_data(value) if _is_key(value) else value
    return tree


def _fill(template: flax_nnx.State, tree: PyTree) -> flax_nnx.State:
    """The inverse of `_plain`, given variables of the same paths."""
    filled = []
    for path, variable in flax_nnx.to_flat_state(template):
        value = tree
        for name in path:
            value = value[str(name)]
        if _is_key(variable.get_value()):
            value = jax.random.wrap_key_data(value)
        filled.append((path, variable.replace(value)))
    return flax_nnx.from_flat_state(filled)


def _is_key(value: Array | jax.ShapeDtypeStruct) -> bool:
    return jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
