"""Residual networks for images of 32 x 32 (He et al. 2015, section 4.2): three stages of 16, 32 and 64 channels.

    with batch norm     y = relu(shortcut(x) + BN(W_2 * relu(BN(W_1 * x))))                      depth 6 n + 2
    without             y = relu(shortcut(x) + W_2 * relu(W_1 * x + b_1) + b_2),   W_2 = 0 at first

The shortcut has no parameters (option A): where a stage begins, every second pixel, and zeros for the new channels.
Without batch norm a block begins as its shortcut, and W_1 ~ N(0, 2 / (fan_out L)) with L blocks, so that the update of
the whole network does not grow with depth (Fixup, Zhang et al. 2019, with a bias for each channel and no scalars).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from jaxrobust.models.layers import Layers, check
from jaxrobust.models.linen import linen
from jaxrobust.typing import Array, AxisName, Model

STAGES = ((16, 1), (32, 2), (64, 2))
"""Channels of each stage, and the stride of its first block."""


class ResNet(nn.Module):
    """The network with batch norm; see `resnet20`."""

    classes: int
    blocks: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    axis_name: AxisName | None = None

    @nn.compact
    def __call__(self, inputs: Array, train: bool) -> Array:
        """Logits `[batch, class]` of images `[batch, height, width, channel]`."""
        layers = Layers(self.dtype, self.param_dtype, self.axis_name)
        x = nn.relu(layers.batch_norm(train)(layers.convolution(STAGES[0][0])(layers.enter(inputs))))
        for features, first in STAGES:
            for stride in (first, *(1,) * (self.blocks - 1)):
                y = nn.relu(layers.batch_norm(train)(layers.convolution(features, stride)(x)))
                y = layers.batch_norm(train)(layers.convolution(features)(y))
                x = nn.relu(_shortcut(x, features, stride) + y)
        return layers.head(self.classes)(layers.pool(x))


class PlainResNet(nn.Module):
    """The network without batch norm; see `resnet8`."""

    classes: int
    blocks: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: Array, train: bool) -> Array:
        """Logits `[batch, class]` of images `[batch, height, width, channel]`."""
        layers = Layers(self.dtype, self.param_dtype)
        scaled = initializers.variance_scaling(2.0 / (self.blocks * len(STAGES)), "fan_out", "normal")
        x = nn.relu(layers.convolution(STAGES[0][0], bias=True)(layers.enter(inputs)))
        for features, first in STAGES:
            for stride in (first, *(1,) * (self.blocks - 1)):
                y = nn.relu(layers.convolution(features, stride, bias=True, kernel_init=scaled)(x))
                y = layers.convolution(features, bias=True, kernel_init=initializers.zeros)(y)
                x = nn.relu(_shortcut(x, features, stride) + y)
        return layers.head(self.classes)(layers.pool(x))


def resnet8(
    *,
    classes: int = 10,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
) -> Model:
    """ResNet-8 without batch norm: one block a stage, 75,050 parameters for ten classes.

    `y = relu(shortcut(x) + W_2 * relu(W_1 * x + b_1) + b_2)`, a block being its shortcut at first. No example depends
    on another, so per-example gradients and estimates are exact, and `over` is None.

    Args:
      classes: number of logits.
      mean: subtracted from each channel of the inputs, which are in [0, 1]; None for 0.
      std: divides each channel; None for 1.
      dtype: of the computation; logits are at least float32.
      param_dtype: of the parameters.

    Returns:
      A `Model` of images `[batch, height, width, channel]`.

    Raises:
      ValueError: if classes or std is not positive, or a dtype is not floating-point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> model = models.resnet8(classes=10)
      >>> params, state = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 32, 32, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params)), state
      (75050, {})

    Reference:
      Zhang, Dauphin, Ma. Fixup Initialization: Residual Learning Without Normalization.
      https://arxiv.org/abs/1901.09321, 2019 (section 4; the gradient clustering experiments use this depth).
    """
    check(classes=classes, dtype=dtype, param_dtype=param_dtype)
    return linen(PlainResNet(classes, 1, dtype, param_dtype), mean=mean, std=std)


def resnet20(
    *,
    classes: int = 10,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
) -> Model:
    """ResNet-20 with batch norm: three blocks a stage, 269,722 parameters for ten classes.

    `y = relu(shortcut(x) + BN(W_2 * relu(BN(W_1 * x))))`, shortcuts without parameters (option A). Convolutions have no
    bias and start as N(0, 2 / fan_out); batch norm has decay 0.99 and epsilon 1e-5.

    Args:
      classes: number of logits.
      mean: subtracted from each channel of the inputs, which are in [0, 1]; None for 0.
      std: divides each channel; None for 1.
      dtype: of the convolutions; logits and batch statistics are at least float32.
      param_dtype: of the parameters.

    Returns:
      A `Model` of images `[batch, height, width, channel]`; `over` synchronizes its batch statistics.

    Raises:
      ValueError: if classes or std is not positive, or a dtype is not floating-point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> model = models.resnet20(classes=10)
      >>> params, state = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 32, 32, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      269722

    Reference:
      He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. https://arxiv.org/abs/1512.03385, 2015
      (section 4.2, n = 3).
    """
    check(classes=classes, dtype=dtype, param_dtype=param_dtype)
    return linen(ResNet(classes, 3, dtype, param_dtype), mean=mean, std=std)


def _shortcut(x: Array, features: int, stride: int) -> Array:
    """Option A: every `stride`-th pixel, and zeros for the channels that x has not."""
    return jax.lax.pad(x[:, ::stride, ::stride], x.dtype.type(0), (*((0, 0, 0),) * 3, (0, features - x.shape[-1], 0)))
