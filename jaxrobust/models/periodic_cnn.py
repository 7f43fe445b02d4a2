"""Convolutions on a periodic grid: the corrector of a solver's states.

h_0 = u        h_i = tanh(W_i * h_{i-1} + b_i)        correction = W * h + b, W and b start as 0

`*` is a convolution `kernel` wide along each dimension, around the edges. It is made of matrix products and shifts, so
that estimators which move its weights and its inputs at once meet batched products and no grouped convolution, which is
slow.
"""

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers

from jaxrobust.models.layers import Layers
from jaxrobust.models.linen import linen
from jaxrobust.precision import at_least_float32
from jaxrobust.typing import Array, Model


class PeriodicConvolution(nn.Module):
    """`y(p) = b + sum_s W_s x(p - s)` over the shifts s of a square neighborhood."""

    features: int
    kernel: int
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[batch, *places, channel]` to `[batch, *places, features]`."""
        reach, axes = self.kernel // 2, tuple(range(1, x.ndim - 1))
        shifts = list(itertools.product(range(-reach, reach + 1), repeat=len(axes)))
        shape = (len(shifts), x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype).astype(self.dtype)
        bias = self.param("bias", initializers.zeros, (self.features,), self.param_dtype).astype(self.dtype)
        x = x.astype(self.dtype)
        # What is shifted is what has fewer channels.
        if x.shape[-1] <= self.features:
            patches = jnp.concatenate([jnp.roll(x, shift, axes) for shift in shifts], axis=-1)
            return patches @ kernel.reshape(-1, self.features) + bias
        parts = x @ jnp.moveaxis(kernel, 0, 1).reshape(x.shape[-1], -1)
        parts = parts.reshape(*x.shape[:-1], len(shifts), self.features)
        shifted = [jnp.roll(parts[..., number, :], shift, axes) for number, shift in enumerate(shifts)]
        return jnp.sum(jnp.stack(shifted), 0) + bias


class PeriodicCNN(nn.Module):
    """The network; see `periodic_cnn`."""

    dimensions: int
    widths: tuple[int, ...]
    kernel: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: Array, train: bool) -> Array:
        """Corrections of states `[batch, *places]`."""
        x = Layers(self.dtype, self.param_dtype).enter(inputs, rank=None)
        if x.ndim != 1 + self.dimensions:
            raise ValueError(f"inputs must be [batch, *places] of {self.dimensions} dimensions, got shape {x.shape}")
        x = x[..., None]
        for width in self.widths:
            start = initializers.lecun_normal()
            x = jnp.tanh(PeriodicConvolution(width, self.kernel, start, self.dtype, self.param_dtype)(x))
        wide = at_least_float32(self.dtype)
        return PeriodicConvolution(1, self.kernel, initializers.zeros, wide, self.param_dtype)(x)[..., 0]


def periodic_cnn(
    dimensions: int = 1,
    widths: Sequence[int] = (34,),
    kernel: int = 7,
    *,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
) -> Model:
    """A small convolutional network on a periodic grid of one channel; before the first step it gives 0.

    Args:
      dimensions: of the grid, 1 or 2.
      widths: channels of each hidden layer; (34,) with kernels of 7 has 511 parameters in one dimension.
      kernel: places that a layer sees along a dimension, odd.
      dtype: of the computation; corrections are at least float32.
      param_dtype: of the parameters.

    Returns:
      A `Model` of states `[batch, points]` or `[batch, points, points]`, to corrections of the same shape.

    Raises:
      ValueError: for another number of dimensions, a width that is not positive, or an even kernel.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> params, state = models.periodic_cnn().init(jax.random.key(0), jnp.zeros([1, 24]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      511
    """
    if dimensions not in (1, 2):
        raise ValueError(f"dimensions must be 1 or 2, got {dimensions}")
    if kernel < 1 or not kernel % 2:
        raise ValueError(f"kernel must be odd and positive, got {kernel}")
    for number, width in enumerate(widths):
        if width < 1:
            raise ValueError(f"widths[{number}] must be positive, got {width}")
    return linen(PeriodicCNN(dimensions, tuple(widths), kernel, dtype, param_dtype))
