r"""Denoisers: networks that find the noise of an image and take it away (DnCNN, Zhang et al. 2017).

    h_1 = relu(W_1 * x + b_1)        h_i = relu(BN(W_i * h_{i-1}))        D(x) = x - W_L * h_{L-1},   W_L = 0 at first

so that a denoiser begins as the identity. Without batch norm, :math:`h_i = relu(W_i * h_{i-1} + b_i)`. `*` is a
convolution in `denoiser`. In `dense_denoiser` it is a product with whole images, for those that have their content in
the same place: there a pixel's own statistics tell more than its neighbors.

Batch norm is what was published, and deep chains learn faster with it. A shallow one does without: in training batch
norm makes an image depend on its batch, so that estimators that move units do not apply and one moved weight changes
more than its own channel; what is certified afterwards takes running statistics, which settle in some hundred steps.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers

from jaxrobust.models.layers import Layers
from jaxrobust.models.linen import linen
from jaxrobust.typing import Array, AxisName, Model

ORTHOGONAL = initializers.orthogonal(math.sqrt(2))
"""Kernels whose columns are orthogonal; the factor keeps the variance through a rectifier."""


class Denoiser(nn.Module):
    """The network; see `denoiser`."""

    depth: int
    features: int
    batch_norm: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    axis_name: AxisName | None = None

    @nn.compact
    def __call__(self, inputs: Array, train: bool) -> Array:
        """Images like the inputs, `[batch, height, width, channel]`."""
        layers = Layers(self.dtype, self.param_dtype, self.axis_name)
        x = layers.enter(inputs)
        channels = x.shape[-1]
        x = nn.relu(layers.convolution(self.features, bias=True, kernel_init=ORTHOGONAL)(x))
        for _ in range(self.depth - 2):
            x = layers.convolution(self.features, bias=not self.batch_norm, kernel_init=ORTHOGONAL)(x)
            x = nn.relu(layers.batch_norm(train)(x) if self.batch_norm else x)
        noise = layers.convolution(channels, kernel_init=initializers.zeros)(x)
        return inputs - noise.astype(inputs.dtype)


class DenseDenoiser(nn.Module):
    """The network; see `dense_denoiser`."""

    widths: tuple[int, ...]
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: Array, train: bool) -> Array:
        """Images like the inputs, `[batch, ...]`."""
        x = Layers(self.dtype, self.param_dtype).enter(inputs, rank=None)
        x = x.reshape(x.shape[0], -1)
        size = x.shape[-1]
        for width in self.widths:
            x = nn.relu(nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype)(x))
        noise = nn.Dense(size, kernel_init=initializers.zeros, dtype=self.dtype, param_dtype=self.param_dtype)(x)
        return inputs - noise.reshape(inputs.shape).astype(inputs.dtype)


def denoiser(
    depth: int = 17,
    features: int = 64,
    *,
    batch_norm: bool = True,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
) -> Model:
    """A residual chain of 3 x 3 convolutions, from images to images of the same size.

    `D(x) = x - net(x)`; kernels start orthogonal, the last one as 0, biases as 0: before the first step `D(x) = x`. The
    result is not cut to [0, 1]. It sees `2 depth + 1` pixels along a side.

    Args:
      depth: number of convolutions, at least 2. 17 as published.
      features: channels between them. 64 as published.
      batch_norm: whether all convolutions but the first and the last are followed by batch norm, as published; else
        they have biases. False for shallow denoisers and for estimators that move units.
      dtype: of the computation; images keep at least float32.
      param_dtype: of the parameters.

    Returns:
      A `Model` whose outputs are images. With the defaults and three channels it has 558,400 parameters.

    Raises:
      ValueError: for a depth below 2, or features that are not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> model = models.denoiser(3, 8, batch_norm=False)
      >>> params, state = model.init(jax.random.key(0), jnp.zeros([1, 8, 8, 1]))
      >>> images = jnp.full([2, 8, 8, 1], 0.5)
      >>> bool(jnp.all(model.apply(params, state, images, train=False)[0] == images))
      True

    Reference: Zhang, Zuo, Chen, Meng and Zhang, "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image
    Denoising", https://arxiv.org/abs/1608.03981, 2017.
    """
    if depth < 2:
        raise ValueError(f"depth must be at least 2, got {depth}: one convolution from the image, one back to it")
    if features < 1:
        raise ValueError(f"features must be positive, got {features}")
    return linen(Denoiser(depth, features, batch_norm, dtype, param_dtype))


def dense_denoiser(
    widths: Sequence[int] = (32,), *, dtype: jnp.dtype = jnp.float32, param_dtype: jnp.dtype = jnp.float32
) -> Model:
    """A residual multilayer perceptron, from small images to images of the same size.

    `D(x) = x - net(x)`; kernels start as N(0, 1 / fan_in), truncated (LeCun), the last one as 0, biases as 0: before
    the first step `D(x) = x`. The result is not cut to [0, 1].

    Args:
      widths: units of each hidden layer. The default has 4,192 parameters for digits of 8 x 8.
      dtype: of the computation; images keep at least float32.
      param_dtype: of the parameters.

    Returns:
      A `Model` whose outputs are images, for inputs `[batch, ...]` of one size.

    Raises:
      ValueError: for a width that is not positive, or no widths: the denoiser would be linear.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> params, state = models.dense_denoiser().init(jax.random.key(0), jnp.zeros([1, 8, 8, 1]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      4192

    Reference: Zhang, Zuo, Chen, Meng and Zhang, "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image
    Denoising", https://arxiv.org/abs/1608.03981, 2017, for what it learns: the residual.
    """
    if not widths:
        raise ValueError(f"widths must name at least one hidden layer, got {widths}")
    for number, width in enumerate(widths):
        if width < 1:
            raise ValueError(f"widths[{number}] must be positive, got {width}")
    return linen(DenseDenoiser(tuple(widths), dtype, param_dtype))
