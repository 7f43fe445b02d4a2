"""What every attack asks of its settings and of a batch, checked before anything is compiled."""

import math
from typing import Any

import jax.numpy as jnp

from jaxrobust.geometry import Geometry


def check_ball(geometry: Geometry, radius: float, *, infinite: bool = False) -> None:
    """A norm, and a radius that is a number from 0.

    Args:
      geometry: the norm.
      radius: largest norm of a perturbation, a Python number and not a traced one.
      infinite: whether the radius may be infinite.

    Raises:
      ValueError: if one of them is not.
    """
    if not isinstance(geometry, Geometry):
        raise ValueError(f"geometry must be a Geometry, such as geometry.linf(), got {geometry!r}")
    if not radius >= 0:
        raise ValueError(f"radius must not be negative, got {radius}")
    if math.isinf(radius) and not infinite:
        raise ValueError(f"radius must be finite, got {radius}: attacks.fab finds the closest image of all")


def check_counts(least: int = 1, **counts: float) -> None:
    """Whole numbers, none below the least.

    Raises:
      ValueError: with the name of one that is not.
    """
    for name, value in counts.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
        if value != int(value):
            raise ValueError(f"{name} must be a whole number, got {value}")


def check_images(images: Any) -> None:
    """Images are `[batch, ...]` of floating point.

    Raises:
      ValueError: if they are not.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}: divide by 255")
    if images.ndim == 0:
        raise ValueError("images must be [batch, ...], got a scalar")


def check_classified(logits: Any, images: Any, labels: Any) -> None:
    """Logits are `[batch, class]` and labels `[batch]` integers, one for each image.

    Raises:
      ValueError: if they are not.
    """
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(
            f"logits must be [batch, class] of {len(images)} images, got {logits.shape}: are images [batch, ...]?"
        )
    if labels.shape != (len(images),) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be [{len(images)}] integers, one for each image, got {labels.dtype} of shape {labels.shape}"
        )
