"""Wide residual networks, WRN-d-w (Zagoruyko and Komodakis 2016): the networks of adversarial training at scale.

    depth d = 6 n + 4: three stages of n blocks with 16 w, 32 w and 64 w channels, after a convolution of 16

Blocks are those of `preact_resnet`, activation before convolution.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxrobust.models.layers import check
from jaxrobust.models.linen import linen
from jaxrobust.models.preact_resnet import PreactivationResNet
from jaxrobust.typing import Array, Model


def wide_resnet(
    depth: int,
    width: int,
    activation: Callable[[Array], Array] = jax.nn.relu,
    *,
    classes: int = 10,
    zero_head: bool = False,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
) -> Model:
    """WRN-depth-width.

    `y = shortcut + W_2 * f(BN(W_1 * f(BN(x))))`. Convolutions have no bias and start as N(0, 2 / fan_out). At stride 2
    they pad as XLA's "SAME" does, on the right alone for images of even size, as in the JAX recipes. Batch norm has
    decay 0.99 and epsilon 1e-5. There is no dropout.

    Args:
      depth: number of layers, 6 n + 4.
      width: factor of the channels.
      activation: elementwise function after each batch norm: `jax.nn.relu` in the first recipes, `jax.nn.silu` (swish)
        in those of Gowal et al. and Bartoldson et al.
      classes: number of logits.
      zero_head: whether the last kernel starts at 0, as in Gowal et al.; the first attack then has no direction.
      mean: subtracted from each channel of the inputs, which are in [0, 1]; None for 0.
      std: divides each channel; None for 1.
      dtype: of the convolutions, `jnp.bfloat16` for mixed precision; logits and batch statistics are at least float32.
      param_dtype: of the parameters.

    Returns:
      A `Model` of images `[batch, height, width, channel]`; `over` synchronizes its batch statistics.

    Raises:
      ValueError: if depth is not 6 n + 4, width, classes or std is not positive, or a dtype is not floating-point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> model = models.wide_resnet(28, 10, jax.nn.silu, mean=models.CIFAR10_MEAN, std=models.CIFAR10_STD)
      >>> params, state = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 32, 32, 3]))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      36479194

    Reference:
      Zagoruyko, Komodakis. Wide Residual Networks. https://arxiv.org/abs/1605.07146, 2016.
      Gowal, Qin, Uesato, Mann, Kohli. Uncovering the Limits of Adversarial Training against Norm-Bounded Adversarial
      Examples. https://arxiv.org/abs/2010.03593, 2020.
      Bartoldson, Diffenderfer, Parasyris, Kailkhura. Adversarial Robustness Limits via Scaling-Law and Human-Alignment
      Studies. https://arxiv.org/abs/2404.09349, 2024.
    """
    check(classes=classes, dtype=dtype, param_dtype=param_dtype, width=width)
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(
            f"depth must be 6 n + 4 with n > 0, got {depth}: take {6 * max(1, round((depth - 4) / 6)) + 4}"
        )
    stages = (16 * width, 32 * width, 64 * width)
    network = PreactivationResNet(classes, 16, stages, blocks, activation, "SAME", zero_head, dtype, param_dtype)
    return linen(network, mean=mean, std=std)
