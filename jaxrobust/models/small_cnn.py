"""A small convolutional network, for digits and for first looks at CIFAR-10 without an accelerator.

    conv 3x3 (16) -> pool 2x2 -> conv 3x3 (32) -> pool 2x2 -> conv 3x3 (64) -> linear      (activation after each conv)

Pools are means. With `patch=2` the image enters as half its sides with four times its channels, which quarters the cost
of the first convolution. Strided convolutions are avoided: on a CPU, XLA is slow at their gradients. The default has
64,554 parameters for images of 32 x 32 x 3 and 25,866 for the digits of 8 x 8 x 1.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrobust.models.layers import Layers, check
from jaxrobust.models.linen import linen
from jaxrobust.typing import Array, Model


class SmallCNN(nn.Module):
    """The network; see `small_cnn`."""

    classes: int
    channels: tuple[int, ...]
    activation: Callable[[Array], Array]
    patch: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: Array, train: bool) -> Array:
        """Logits `[batch, class]` of images `[batch, height, width, channel]`."""
        layers = Layers(self.dtype, self.param_dtype)
        x = _patches(layers.enter(inputs), self.patch)
        for i, features in enumerate(self.channels):
            x = x if i == 0 else nn.avg_pool(x, (2, 2), (2, 2))
            x = self.activation(layers.convolution(features, bias=True)(x))
        return layers.head(self.classes)(x.reshape(x.shape[0], -1))


def small_cnn(
    classes: int = 10,
    channels: Sequence[int] = (16, 32, 64),
    activation: Callable[[Array], Array] = jax.nn.relu,
    *,
    patch: int = 1,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
) -> Model:
    """A few 3 x 3 convolutions with mean pools between them, and a linear layer on all positions.

    `h_i = activation(W_i * pool(h_{i-1}) + b_i)`; kernels start as N(0, 2 / fan_out) (He), biases as 0. It has no batch
    statistics, so `over` is None, and estimators that perturb single weights or activations apply to all of it.

    Args:
      classes: number of logits.
      channels: of each convolution.
      activation: elementwise function after each convolution.
      patch: side of the square of pixels that enters as one position; divides the images' sides.
      mean: subtracted from each channel of the inputs, which are in [0, 1]; None for 0.
      std: divides each channel; None for 1.
      dtype: of the computation; logits are at least float32.
      param_dtype: of the parameters.

    Returns:
      A `Model` of images `[batch, height, width, channel]` of one size.

    Raises:
      ValueError: if classes or a number of channels is not positive, there is no convolution, std is not positive, or a
        dtype is not floating-point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> model = models.small_cnn(classes=10)
      >>> params, state = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 8, 8, 1]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      25866

    Reference:
      Shi et al. Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
      Network. https://arxiv.org/abs/1609.05158, 2016 (positions against channels).
    """
    if not channels:
        raise ValueError(f"channels must name at least one convolution, got {channels}: for none take models.mlp")
    names = {f"channels[{i}]": features for i, features in enumerate(channels)}
    check(classes=classes, patch=patch, dtype=dtype, param_dtype=param_dtype, **names)
    return linen(SmallCNN(classes, tuple(channels), activation, patch, dtype, param_dtype), mean=mean, std=std)


def _patches(x: Array, side: int) -> Array:
    """`[batch, height, width, channel]` to `[batch, height / side, width / side, side * side * channel]`."""
    batch, height, width, channels = x.shape
    if height % side or width % side:
        raise ValueError(f"patch must divide the images' sides, got {side} for {height} x {width}")
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // side, width // side, -1)
