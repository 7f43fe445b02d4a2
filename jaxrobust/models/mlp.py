"""Multilayer perceptron: linear layers with an activation between them.

h_0 = flattened inputs        h_i = activation(W_i h_{i-1} + b_i)        logits = W h + b
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrobust.models.layers import Layers, check
from jaxrobust.models.linen import linen
from jaxrobust.typing import Array, Model


class MLP(nn.Module):
    """The network; see `mlp`."""

    classes: int
    widths: tuple[int, ...]
    activation: Callable[[Array], Array]
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: Array, train: bool) -> Array:
        """Logits `[batch, class]` of inputs `[batch, ...]`."""
        layers = Layers(self.dtype, self.param_dtype)
        x = layers.enter(inputs, rank=None)
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = self.activation(nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype)(x))
        return layers.head(self.classes)(x)


def mlp(
    classes: int = 10,
    widths: Sequence[int] = (64,),
    activation: Callable[[Array], Array] = jax.nn.relu,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
) -> Model:
    """A multilayer perceptron.

    `logits = W h + b`, `h_i = activation(W_i h_{i-1} + b_i)`; kernels start as N(0, 1 / fan_in), truncated (LeCun),
    biases as 0. No widths give a linear classifier. It has no batch statistics, so `over` is None.

    Args:
      classes: number of logits.
      widths: units of each hidden layer.
      activation: elementwise function after each hidden layer.
      mean: subtracted from each channel of the inputs, which are in [0, 1]; None for 0.
      std: divides each channel; None for 1.
      dtype: of the computation; logits are at least float32.
      param_dtype: of the parameters.

    Returns:
      A `Model` of inputs `[batch, ...]`.

    Raises:
      ValueError: if classes or a width is not positive, std is not, or a dtype is not floating-point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> model = models.mlp(10, widths=(32, 32))
      >>> params, state = model.init(jax.random.key(0), jnp.zeros([1, 8, 8, 1]))
      >>> model.apply(params, state, jnp.zeros([5, 8, 8, 1]), train=False)[0].shape
      (5, 10)

    Reference:
      Rumelhart, Hinton, Williams. Learning representations by back-propagating errors.
      https://doi.org/10.1038/323533a0, 1986.
    """
    check(classes=classes, dtype=dtype, param_dtype=param_dtype, **{f"widths[{i}]": w for i, w in enumerate(widths)})
    return linen(MLP(classes, tuple(widths), activation, dtype, param_dtype), mean=mean, std=std)
