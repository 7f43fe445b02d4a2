r"""Images and labels that fit in device memory: they stay there, and each step picks its own rows.

Row r of step t's batch of B examples is the example number :math:`n = t B + r`. In training it is the one at position
:math:`n \bmod N` of epoch :math:`\lfloor n / N \rfloor`, and each epoch has its own order: `shuffle.permuted` gives one
position of it at a time. Batches run on from one epoch into the next: each example comes once an epoch, whatever B.
"""

import hashlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.data.shuffle import permuted
from jaxrobust.typing import Array, Batch, Key, Source, Stream


class Splits(NamedTuple):
    """A data set in two parts.

    Attributes:
      train: shuffled, endless; a `Stream` where it was asked for.
      test: in order, once through: positions past its end have weight 0.
    """

    train: Source | Stream
    test: Source


class ArraysState(NamedTuple):
    """State of a source of arrays.

    Attributes:
      images: `[N, ...]` in the dtype they came in.
      labels: `[N]` int32.
      key: of the epochs' orders.
    """

    images: Array
    labels: Array
    key: Key


def arrays(images: np.ndarray, labels: np.ndarray, *, classes: int | None = None, shuffle: bool = True) -> Source:
    """A source of examples held in device memory.

    Args:
      images: `[N, height, width, channel]` or `[N, feature]`; uint8, or floats in [0, 1]. Both stay as they are on the
        device (float64 becomes float32 without x64) and become float32 in [0, 1] in a batch.
      labels: `[N]` integers from 0.
      classes: number of classes that the labels must lie below; None for any.
      shuffle: True for endless training, a new order each epoch (the first 2^32 examples); False for a test set: in
        order, once through, and positions past its end repeat the last example with weight 0.

    Returns:
      A `Source` of float32 images in [0, 1] and int32 labels.

    Raises:
      ValueError: for no examples, other shapes or dtypes, lengths that differ, images outside [0, 1] or not a number,
        labels out of range.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust import data
      >>> source = data.arrays(np.full((3, 4), 255, np.uint8), np.array([0, 1, 2]), shuffle=False)
      >>> batch = source.batch(source.init(jax.random.key(0)), 1, jnp.arange(2), 2)
      >>> batch.targets.tolist(), batch.weight.tolist(), batch.inputs.max().item()
      ([2, 2], [1.0, 0.0], 1.0)
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_images(images)
    _check_labels(labels, len(images), classes)
    labels = labels.astype(np.int32)
    length = len(images)

    def init(key: Key) -> ArraysState:
        return ArraysState(jnp.asarray(images), jnp.asarray(labels), key)

    def batch(state: ArraysState, step: Array | int, rows: Array, size: int) -> Batch:
        index, weight = picked(state.key, step, rows, size, length, shuffle)
        return Batch(unit_floats(state.images[index]), state.labels[index], index, weight)

    return Source(init, batch, length, fingerprint_of(images, labels))


def picked(key: Key, step: Array | int, rows: Array, size: int, length: int, shuffle: bool) -> tuple[Array, Array]:
    """Which examples come at a step.

    Args:
      key: of the epochs' orders.
      step: number of the batch.
      rows: int32, positions in a batch.
      size: examples of a batch.
      length: examples of the source.
      shuffle: as in `arrays`.

    Returns:
      Their numbers `[rows]` int32, and their weights `[rows]`: 0 past the end of a test set.
    """
    number = jnp.asarray(step).astype(jnp.uint32) * jnp.uint32(size) + rows.astype(jnp.uint32)
    if shuffle:
        index, inside = _shuffled(key, number, length), jnp.ones(rows.shape, bool)
    else:
        index, inside = jnp.minimum(number, jnp.uint32(length - 1)), number < jnp.uint32(length)
    return index.astype(jnp.int32), inside.astype(jnp.float32)


def unit_floats(images: Array) -> Array:
    """Images as float32 in [0, 1]: uint8 is divided by 255.

    Args:
      images: uint8, or floats in [0, 1].

    Returns:
      float32 of the same shape.
    """
    floats = images.astype(jnp.float32)
    return floats / jnp.float32(255) if images.dtype == jnp.uint8 else floats


def fingerprint_of(*parts: np.ndarray | str) -> str:
    """Hex SHA-256 of arrays (bytes, shapes and dtypes) and strings, in order.

    Args:
      *parts: arrays or strings.

    Returns:
      64 hex digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(f"{len(part)}:{part}".encode())
        else:
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(part.tobytes())
    return digest.hexdigest()


@partial(jax.jit, static_argnums=2)
def _shuffled(key: Key, number: Array, size: int) -> Array:
    def one(n: Array) -> Array:
        return permuted(jax.random.fold_in(key, n // jnp.uint32(size)), n % jnp.uint32(size), size)

    return jax.vmap(one)(number)


def check_range(images: np.ndarray) -> None:
    """Refuse images that are neither uint8 nor floats in [0, 1].

    Args:
      images: of any shape, at least one number.

    Raises:
      ValueError: naming the dtype, or the number that is out of range.
    """
    if images.dtype == np.uint8:
        return
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 or floating point, got {images.dtype}: pass uint8 of 0 to 255")
    lowest, highest = float(images.min()), float(images.max())
    if np.isnan(highest):
        raise ValueError("images must lie in [0, 1], got nan: leave out or repair those examples")
    if highest > 1:
        raise ValueError(f"images must lie in [0, 1], got a maximum of {highest}: divide by 255, or pass uint8")
    if lowest < 0:
        raise ValueError(f"images must lie in [0, 1], got a minimum of {lowest}: undo their normalization")


def check_labels(labels: np.ndarray, classes: int | None) -> None:
    """Refuse labels that are no integers of [0, classes).

    Args:
      labels: of any shape, at least one.
      classes: number of classes; None for any.

    Raises:
      ValueError: naming the dtype, or the label that is out of range.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}: pass class numbers from 0")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise ValueError(f"labels must not be negative, got {lowest}: number the classes from 0")
    if classes is not None and highest >= classes:
        raise ValueError(f"labels must lie below the {classes} classes, got {highest}: number the classes from 0")


def _check_images(images: np.ndarray) -> None:
    if images.ndim not in (2, 4):
        raise ValueError(
            f"images must be [N, height, width, channel] or [N, feature], got shape {images.shape}: gray images have "
            "one channel"
        )
    if not images.size:
        raise ValueError(f"images must hold at least one example, got shape {images.shape}")
    check_range(images)


def _check_labels(labels: np.ndarray, length: int, classes: int | None) -> None:
    if labels.ndim != 1:
        raise ValueError(f"labels must be [N], got shape {labels.shape}: pass class numbers, not one-hot rows")
    if len(labels) != length:
        raise ValueError(f"images and labels must be as many, got {length} images and {len(labels)} labels")
    check_labels(labels, classes)
