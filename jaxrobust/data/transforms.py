"""Random changes of the images on the device, inside the jitted step: crop and flip.

A transform is `(key, image) -> image` for ONE example. The example's key hangs on the source's key, the step and the
example's number in its source, so that the result depends on neither batch size nor device count.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, Batch, Key, Predict, PyTree, Source, State, Stream

Transform: TypeAlias = Callable[[Key, PyTree], PyTree]
"""`(key, image) -> image` for one example, `[height, width, channel]` in [0, 1]."""
Data = TypeVar("Data", Source, Stream)


class TransformedState(NamedTuple):
    """State of a transformed source.

    Attributes:
      source: the wrapped source's state.
      key: of the transforms.
    """

    source: State
    key: Key


def transformed(data: Data, *transforms: Transform) -> Data:
    """Change every example at random as it is drawn.

    The key of example i at step t is `fold_in(fold_in(key, t), i)`, split over the transforms.

    Args:
      data: a `Source` or a `Stream`.
      *transforms: `(key, image) -> image` for one example, applied in order.

    Returns:
      The same kind of data; examples, order and fingerprint are unchanged.

    Raises:
      ValueError: without transforms.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust import data
      >>> plain = data.arrays(np.ones((2, 4), np.float32), np.array([0, 1]))
      >>> noisy = data.transformed(plain, lambda key, image: image * jax.random.uniform(key))
      >>> batch = noisy.batch(noisy.init(jax.random.key(0)), 0, jnp.arange(2), 2)
      >>> bool(batch.inputs[0, 0] == batch.inputs[1, 0])
      False
    """
    if not transforms:
        raise ValueError("transforms must be at least one, got none: use the data as it is")
    if isinstance(data, Stream):
        return data._replace(finish=_finish_then(data, transforms))

    def init(key: Key) -> TransformedState:
        inner, own = jax.random.split(key)
        return TransformedState(data.init(inner), own)

    def batch(state: TransformedState, step: Array | int, rows: Array, size: int) -> Batch:
        drawn = data.batch(state.source, step, rows, size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(state.key, step), drawn.index)
        return drawn._replace(inputs=jax.vmap(_in_order(transforms))(keys, drawn.inputs))

    def refresh(key: Key, state: TransformedState, predict: Predict) -> TransformedState:
        return state._replace(source=data.refresh(key, state.source, predict))

    return data._replace(init=init, batch=batch, refresh=refresh)


def crop(padding: int = 4) -> Transform:
    """Pad with zeros on every side and cut out a window of the former size, uniformly placed.

    Args:
      padding: rows and columns added on each side; 4 is usual for 32 x 32 images.

    Returns:
      A transform of images `[height, width, ...]` of any size; (2 padding + 1)^2 equally likely windows.

    Raises:
      ValueError: if padding is not positive; when called, for an example without height and width.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import data
      >>> data.crop(1)(jax.random.key(0), jnp.ones((2, 3, 1))).shape
      (2, 3, 1)

    Reference: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", section 4.2,
    https://arxiv.org/abs/1512.03385, 2015.
    """
    if padding < 1:
        raise ValueError(f"padding must be positive, got {padding}: leave the crop out")

    def transform(key: Key, image: Array) -> Array:
        _check_image("crop", image)
        padded = jnp.pad(image, ((padding, padding),) * 2 + ((0, 0),) * (image.ndim - 2))
        top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(padded, (top, left) + (jnp.zeros_like(top),) * (image.ndim - 2), image.shape)

    return transform


def flip() -> Transform:
    """Mirror left and right with probability 1/2.

    Returns:
      A transform of images `[height, width, ...]`.

    Raises:
      ValueError: when called, for an example without height and width.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import data
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> jax.vmap(data.flip(), (0, None))(keys, jnp.array([[0.0, 1.0]]))[:, 0, 0].tolist()
      [0.0, 1.0, 0.0, 1.0]

    Reference: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
    section 4.1, https://doi.org/10.1145/3065386, 2012.
    """

    def transform(key: Key, image: Array) -> Array:
        _check_image("flip", image)
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

    return transform


def _in_order(transforms: tuple[Transform, ...]) -> Transform:
    def one(key: Key, image: PyTree) -> PyTree:
        for own, transform in zip(jax.random.split(key, len(transforms)), transforms, strict=True):
            image = transform(own, image)
        return image

    return one


def _finish_then(data: Stream, transforms: tuple[Transform, ...]) -> Callable[[Array, PyTree], PyTree]:
    def finish(keys: Array, inputs: PyTree) -> PyTree:
        pairs = jax.vmap(jax.random.split)(keys)
        return jax.vmap(_in_order(transforms))(pairs[:, 1], data.finish(pairs[:, 0], inputs))

    return finish


def _check_image(name: str, image: Array) -> None:
    if image.ndim < 2:
        raise ValueError(f"{name} takes images [height, width, channel], got an example of shape {image.shape}")
