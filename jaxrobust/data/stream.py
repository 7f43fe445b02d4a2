r"""Examples that do not fit in device memory: each host reads its own rows of each batch, ahead of the training step.

Global batch t of B examples holds the examples number :math:`t B, \dots, t B + B - 1` of an endless order, which Grain
shuffles anew each epoch from the seed; process p of P reads the p-th of P equal parts of them. Positions are
computed one by one, so that the step is the whole of the iterator's state: a checkpoint needs no other.

Reference: "Grain: feeding JAX models", https://github.com/google/grain, 2023.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrobust.data.arrays import check_labels, check_range, fingerprint_of, unit_floats
from jaxrobust.typing import Array, Batch, PyTree, Stream


def stream(
    examples: Sequence[Any],
    *,
    image: str = "image",
    label: str = "label",
    classes: int | None = None,
    fingerprint: str | None = None,
    threads: int = 8,
    prefetch: int = 8,
) -> Stream:
    """A stream of shuffled examples from anything with a length and an index, such as `tfds.data_source`.

    Args:
      examples: `examples[i]` is a mapping with an image and a label, or the pair of them. Images are uint8 or floats in
        [0, 1], all of one shape. Where it has `__getitems__`, a whole batch is asked for at once.
      image: name of the image in a mapping.
      label: name of the label, an integer from 0.
      classes: number of classes that the labels must lie below; None for any.
      fingerprint: hex SHA-256 of what identifies the examples; None takes the length and three of the examples.
      threads: how many batches are read at the same time; 0 reads in the caller's thread.
      prefetch: how many batches are kept ready.

    Returns:
      A `Stream`. Images travel to the device as they are and become float32 in [0, 1] in `finish`. `batches` raises
      ValueError for a seed outside [0, 2^32), a size that the processes do not divide, and bad examples.

    Raises:
      ValueError: without examples, or if the first one lacks the image or the label.

    Example:
      >>> import numpy as np
      >>> from jaxrobust import data
      >>> examples = [(np.full((2, 2, 1), i, np.uint8), i) for i in range(6)]
      >>> batches = data.stream(examples).batches(0, 0, 3, 0, 1)
      >>> sorted(next(batches).targets.tolist() + next(batches).targets.tolist())
      [0, 1, 2, 3, 4, 5]
    """
    for name, value in (("threads", threads), ("prefetch", prefetch)):
        if value < (name == "prefetch"):
            raise ValueError(f"{name} must be {'positive' if name == 'prefetch' else 'at least 0'}, got {value}")
    length = len(examples)
    if not length:
        raise ValueError("examples must be at least one, got none")

    def batch_of(index: np.ndarray) -> Batch:
        several = getattr(examples, "__getitems__", None)
        found = several(index.tolist()) if several else [examples[i] for i in index.tolist()]
        pairs = [_pair(each, image, label) for each in found]
        images, labels = _stacked([pair[0] for pair in pairs]), np.asarray([pair[1] for pair in pairs])
        check_range(images)
        check_labels(labels, classes)
        return Batch(images, labels.astype(np.int32), index.astype(np.int32), np.ones(len(index), np.float32))

    def batches(seed: int, step: int, size: int, process: int, processes: int) -> Iterator[Batch]:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2^32), got {seed}")
        if size % processes:
            raise ValueError(f"size must be a multiple of the {processes} processes, got {size}")
        return _iterate(seed, step, size, process, size // processes)

    def _iterate(seed: int, step: int, size: int, process: int, rows: int) -> Iterator[Batch]:
        import grain

        order = grain.MapDataset.range(length).seed(seed).shuffle().repeat(None)

        def at(t: int) -> Batch:
            first = int(t) * size + process * rows
            return batch_of(np.array([order[n] for n in range(first, first + rows)]))

        steps = grain.MapDataset.range(step, sys.maxsize).map(at)
        iterator = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
        try:
            yield from iterator
        finally:
            iterator.close()

    first = batch_of(np.array([0]))
    if fingerprint is None:
        some = batch_of(np.unique([0, length // 2, length - 1])) if length > 1 else first
        fingerprint = fingerprint_of(str(length), some.inputs, some.targets)
    return Stream(batches, length, fingerprint, _finish)


def _finish(keys: Array, inputs: PyTree) -> PyTree:
    del keys
    return jax.tree.map(unit_floats, inputs)


def _pair(example: Any, image: str, label: str) -> tuple[np.ndarray, Any]:
    if not isinstance(example, Mapping):
        if not isinstance(example, Sequence) or len(example) != 2:
            raise ValueError(f"an example must be a mapping or a pair (image, label), got {type(example).__name__}")
        return np.asarray(example[0]), example[1]
    for name in (image, label):
        if name not in example:
            raise ValueError(f"examples have no {name!r}: they have {', '.join(map(str, example))}")
    return np.asarray(example[image]), example[label]


def _stacked(images: Sequence[np.ndarray]) -> np.ndarray:
    shapes = sorted({each.shape for each in images})
    if len(shapes) > 1:
        raise ValueError(f"images must be of one shape, got {shapes[0]} and {shapes[1]}: resize them beforehand")
    return np.stack(images)
