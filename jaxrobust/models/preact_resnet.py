"""Residual networks with activation before convolution (He et al. 2016).

    a = activation(BN(x))        y = shortcut + W_2 * activation(BN(W_1 * a))        logits = head(activation(BN(x)))

The shortcut is x where a block keeps the shape, and a 1 x 1 convolution of a where it does not.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrobust.models.layers import SYMMETRIC, Layers, check
from jaxrobust.models.linen import linen
from jaxrobust.typing import Array, AxisName, Model


class PreactivationResNet(nn.Module):
    """The network; see `preact_resnet18` and `wide_resnet`.

    Attributes:
      classes: number of logits.
      stem: channels of the first convolution.
      stages: channels of each stage; all but the first begin with stride 2.
      blocks: number of blocks in each stage.
      activation: elementwise function after each batch norm.
      padding: of 3 x 3 convolutions.
      zero_head: whether the last kernel starts at 0.
      dtype: of the convolutions.
      param_dtype: of the parameters.
      axis_name: over which training statistics are means.
    """

    classes: int
    stem: int
    stages: tuple[int, ...]
    blocks: int
    activation: Callable[[Array], Array]
    padding: str | Sequence[tuple[int, int]]
    zero_head: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    axis_name: AxisName | None = None

    @nn.compact
    def __call__(self, inputs: Array, train: bool) -> Array:
        """Logits `[batch, class]` of images `[batch, height, width, channel]`."""
        layers = Layers(self.dtype, self.param_dtype, self.axis_name, self.padding)
        x = layers.convolution(self.stem)(layers.enter(inputs))
        for i, features in enumerate(self.stages):
            for stride in (1 if i == 0 else 2, *(1,) * (self.blocks - 1)):
                a = self.activation(layers.batch_norm(train)(x))
                keeps = stride == 1 and x.shape[-1] == features
                shortcut = x if keeps else layers.convolution(features, stride, side=1)(a)
                a = self.activation(layers.batch_norm(train)(layers.convolution(features, stride)(a)))
                x = shortcut + layers.convolution(features)(a)
        x = self.activation(layers.batch_norm(train)(x))
        return layers.head(self.classes, zero=self.zero_head)(layers.pool(x))


def preact_resnet18(
    *,
    classes: int = 10,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
) -> Model:
    """PreActResNet-18 for CIFAR, as in studies of robust overfitting: 11,172,170 parameters for ten classes.

    Four stages of two blocks with 64, 128, 256 and 512 channels after a 3 x 3 convolution of stride 1. The last batch
    norm and rectifier come before the mean over positions; networks of this name that leave them out have 1,024
    parameters less. Convolutions have no bias, pad one pixel on every side and start as N(0, 2 / fan_out); batch norm
    has decay 0.99 and epsilon 1e-5.

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
      >>> model = models.preact_resnet18(classes=10)
      >>> params, state = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 32, 32, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      11172170

    Reference:
      He, Zhang, Ren, Sun. Identity Mappings in Deep Residual Networks. https://arxiv.org/abs/1603.05027, 2016.
      Rice, Wong, Kolter. Overfitting in adversarially robust deep learning. https://arxiv.org/abs/2002.11569, 2020.
    """
    check(classes=classes, dtype=dtype, param_dtype=param_dtype)
    stages = (64, 128, 256, 512)
    network = PreactivationResNet(classes, 64, stages, 2, jax.nn.relu, SYMMETRIC, False, dtype, param_dtype)
    return linen(network, mean=mean, std=std)
