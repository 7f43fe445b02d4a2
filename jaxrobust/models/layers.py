"""Layers that the image networks share: each choice once.

    convolution   without bias; kernel ~ N(0, 2 / fan_out), fan_out = side^2 x output channels (He et al. 2015)
    batch norm    (x - mean) / sqrt(variance + 1e-5) x scale + bias; running <- 0.99 running + 0.01 batch
    head          mean over positions, then a linear layer with bias; kernel ~ N(0, 1 / fan_in), truncated, or 0

Running statistics take the batch's biased variance and start at mean 0 and variance 1. Their decay of 0.99 is that of
the adversarial training recipes (Gowal et al. 2020, Bartoldson et al. 2024); PyTorch's default would be 0.9.
Convolutions compute in `dtype`, parameters are in `param_dtype`, and all means (batch statistics, pooling, logits)
are taken in float32, or in float64 where `dtype` is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers

from jaxrobust.precision import at_least_float32
from jaxrobust.typing import Array, AxisName

HE = initializers.variance_scaling(2.0, "fan_out", "normal")
"""Keeps the variance of gradients through a rectifier: N(0, 2 / fan_out)."""
SYMMETRIC = ((1, 1), (1, 1))
"""One pixel on every side of a 3 x 3 convolution, as in PyTorch; XLA's "SAME" pads right alone at stride 2."""


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one network.

    Attributes:
      dtype: in which convolutions compute.
      param_dtype: of the parameters.
      axis_name: over which training statistics of batch norm are means; None for this batch alone.
      padding: of 3 x 3 convolutions.
    """

    dtype: jnp.dtype
    param_dtype: jnp.dtype
    axis_name: AxisName | None = None
    padding: str | Sequence[tuple[int, int]] = SYMMETRIC

    def convolution(
        self,
        features: int,
        stride: int = 1,
        *,
        side: int = 3,
        bias: bool = False,
        kernel_init: nn.initializers.Initializer = HE,
    ) -> nn.Conv:
        """A square convolution; 3 x 3 keeps the size at stride 1, and both halve it at stride 2."""
        return nn.Conv(
            features,
            (side, side),
            strides=stride,
            padding=self.padding if side == 3 else "VALID",
            use_bias=bias,
            kernel_init=kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def batch_norm(self, train: bool) -> nn.BatchNorm:
        """Batch norm by the batch in training, by the running statistics else."""
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.99,
            epsilon=1e-5,
            # Flax declares one name; it hands the field to `jax.lax.pmean`, which takes several.
            # pyrefly: ignore[bad-argument-type]
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def head(self, classes: int, *, zero: bool = False) -> nn.Dense:
        """The last layer; with `zero` all logits are 0 before the first step."""
        return nn.Dense(
            classes,
            kernel_init=initializers.zeros if zero else initializers.lecun_normal(),
            dtype=at_least_float32(self.dtype),
            param_dtype=self.param_dtype,
        )

    def pool(self, x: Array) -> Array:
        """Mean over all positions, `[batch, channel]`."""
        return jnp.mean(x, axis=(1, 2), dtype=at_least_float32(x.dtype))

    def enter(self, inputs: Array, rank: int | None = 4) -> Array:
        """Check a batch of images and cast it to the dtype of the network."""
        if rank is not None and inputs.ndim != rank:
            raise ValueError(
                f"inputs must be [batch, height, width, channel], got shape {inputs.shape}: add the missing axis"
            )
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ValueError(f"inputs must be floats in [0, 1], got {inputs.dtype}: divide by the largest value")
        return inputs.astype(self.dtype)


def check(*, classes: int, dtype: jnp.dtype, param_dtype: jnp.dtype, **sizes: int) -> None:
    """Refuse what no network can be built of.

    Raises:
      ValueError: if classes or a size is not positive, or a dtype is not floating-point.
    """
    for name, size in {"classes": classes, **sizes}.items():
        if size < 1:
            raise ValueError(f"{name} must be positive, got {size}")
    for name, given in (("dtype", dtype), ("param_dtype", param_dtype)):
        if not jnp.issubdtype(given, jnp.floating):
            raise ValueError(f"{name} must be a floating-point type, got {jnp.dtype(given)}: take jnp.float32")
