"""Where an attack starts: `(key, geometry, image, radius) -> delta`, for ONE example."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxrobust.geometry import Geometry
from jaxrobust.typing import Array, Key

Start: TypeAlias = Callable[[Key, Geometry, Array, float], Array]


def uniform_start(key: Key, geometry: Geometry, image: Array, radius: float) -> Array:
    """Uniform in the ball.

    Args:
      key: of this example.
      geometry: the norm of the ball.
      image: ONE example, of any shape.
      radius: of the ball.

    Returns:
      A perturbation of the image's shape and dtype.

    Reference: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks",
    https://arxiv.org/abs/1706.06083, 2018.
    """
    return (radius * geometry.sample(key, image.shape)).astype(image.dtype)


def no_start(key: Key, geometry: Geometry, image: Array, radius: float) -> Array:
    """The clean image itself.

    Args:
      key: not used.
      geometry: not used.
      image: ONE example, of any shape.
      radius: not used.

    Returns:
      Zeros of the image's shape and dtype.

    Reference: Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples",
    https://arxiv.org/abs/1412.6572, 2015.
    """
    del key, geometry, radius
    return jnp.zeros_like(image)


def gaussian_start(scale: float = 0.001) -> Start:
    """Gaussian noise around the clean image, as TRADES and MART start.

    Args:
      scale: standard deviation in units of the images' range [0, 1]; 0.001 in both papers' code.

    Returns:
      The start.

    Raises:
      ValueError: if the scale is not positive.

    Reference: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy",
    https://arxiv.org/abs/1901.08573, 2019.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}: use no_start to begin at the clean image")

    def start(key: Key, geometry: Geometry, image: Array, radius: float) -> Array:
        del geometry, radius
        return scale * jax.random.normal(key, image.shape, image.dtype)

    return start
