"""Any data set of TensorFlow Datasets that has been prepared, read without TensorFlow.

`prepare` writes a data set as ArrayRecord files once. Most public sets need TensorFlow for that (extra `prepare`);
reading them back does not.

Reference: "TensorFlow Datasets, a collection of ready-to-use datasets", https://www.tensorflow.org/datasets, 2019.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust.data.arrays import Splits, arrays, fingerprint_of
from jaxrobust.data.stream import stream
from jaxrobust.typing import Source, Stream

CHUNK = 4096
"""Examples decoded at once."""


def tfds(
    name: str,
    *,
    data_dir: str | Path | None = None,
    train_split: str = "train",
    test_split: str = "test",
    in_memory: bool = True,
    image: str = "image",
    label: str = "label",
) -> Splits:
    """A prepared TFDS data set.

    Args:
      name: `name`, `name/config` or `name:version`, such as `cifar10`.
      data_dir: where TFDS keeps its data sets; `TFDS_DATA_DIR` or `~/tensorflow_datasets` by default.
      train_split: a split or a slice of one, such as `train[:90%]`.
      test_split: likewise; always held in device memory.
      in_memory: True for a training set on the device; False for a `Stream` from disk.
      image: name of the images' feature: uint8 images, or floats in [0, 1], all of one shape.
      label: name of the labels' feature, an integer.

    Returns:
      `Splits`, with a `Stream` to train on where in_memory is False.

    Raises:
      ValueError: if there is no such data set, split or feature, it is not prepared, or as `arrays` and `stream`.

    Example:
      >>> import tempfile
      >>> from jaxrobust import data
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     data.prepare("digits", directory)
      ...     splits = data.tfds("digits", data_dir=directory, train_split="train[:100]")
      >>> splits.train.size
      100
    """
    builder = _prepared(name, data_dir)
    if not in_memory:
        return Splits(_streamed(builder, train_split, image, label), read(builder, test_split, image, label, False))
    return Splits(
        read(builder, train_split, image, label, True),
        read(builder, test_split, image, label, False),
    )


def prepare(name: str, data_dir: str | Path | None = None) -> None:
    """Write a TFDS data set to disk as ArrayRecord files, from where `tfds` reads it; nothing is done twice.

    Args:
      name: `name`, `name/config` or `name:version`, such as `cifar10`.
      data_dir: where TFDS keeps its data sets; `TFDS_DATA_DIR` or `~/tensorflow_datasets` by default.

    Raises:
      ValueError: if there is no such data set, a module that it needs is absent, or its files cannot be fetched or
        written.

    Example:
      >>> import os, tempfile
      >>> from jaxrobust import data
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     data.prepare("digits", directory)
      ...     os.listdir(os.path.join(directory, "digits"))
      ['1.0.0']
    """
    if _plain(name) == "digits":
        from jaxrobust.data.digits import prepared_digits

        prepared_digits(data_dir)
        return
    import tensorflow_datasets

    directory = None if data_dir is None else str(data_dir)
    if _plain(name) not in tensorflow_datasets.list_builders(with_community_datasets=False):
        raise ValueError(_unknown(name, data_dir))
    with _in_one_line(name):
        builder = tensorflow_datasets.builder(name, data_dir=directory, file_format="array_record")
        builder.download_and_prepare()


def read(builder: Any, split: str, image: str, label: str, shuffle: bool) -> Source:
    """A split of a prepared builder, held in device memory.

    Args:
      builder: of TFDS.
      split: a split or a slice of one.
      image: name of the images' feature.
      label: name of the labels' feature.
      shuffle: as in `arrays`.

    Returns:
      A `Source`.

    Raises:
      ValueError: as `tfds`.
    """
    examples = _examples(builder, split, image, label)
    images, labels = [], []
    for first in range(0, len(examples), CHUNK):
        found = examples.__getitems__(range(first, min(first + CHUNK, len(examples))))
        images += [each[image] for each in found]
        labels += [each[label] for each in found]
    shapes = sorted({np.shape(each) for each in images})
    if len(shapes) > 1:
        raise ValueError(f"images of {builder.name} must be of one shape, got {shapes[0]} and {shapes[1]}")
    return arrays(np.stack(images), np.asarray(labels), classes=_classes(builder, label), shuffle=shuffle)


def _streamed(builder: Any, split: str, image: str, label: str) -> Stream:
    examples = _examples(builder, split, image, label)
    shards = [f"{name}:{info.shard_lengths}" for name, info in sorted(builder.info.splits.items())]
    fingerprint = fingerprint_of(builder.info.full_name, split, *shards)
    return stream(examples, image=image, label=label, classes=_classes(builder, label), fingerprint=fingerprint)


def _prepared(name: str, data_dir: str | Path | None) -> Any:
    """A builder made from the files alone, so that neither its code nor TensorFlow is needed."""
    import tensorflow_datasets

    given = {} if data_dir is None else {"data_dir": str(data_dir)}
    try:
        return tensorflow_datasets.core.read_only_builder.builder_from_files(name, **given)
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        if _plain(name) in (*tensorflow_datasets.list_builders(with_community_datasets=False), "digits"):
            where = data_dir or tensorflow_datasets.core.constants.DATA_DIR
            raise ValueError(f"{name} is not prepared in {where}: run `jaxrobust data prepare {name}`") from error
        raise ValueError(_unknown(name, data_dir)) from error


def _examples(builder: Any, split: str, image: str, label: str) -> Any:
    """A data source of TFDS: a sequence that gives several examples at once by `__getitems__`."""
    for feature in (image, label):
        if feature not in builder.info.features:
            raise ValueError(
                f"{builder.name} has no feature {feature!r}: it has {', '.join(sorted(builder.info.features))}"
            )
    try:
        examples = builder.as_data_source(split)
        length = len(examples)
    except NotImplementedError as error:
        raise ValueError(
            f"{builder.name} in {builder.data_dir} is not in ArrayRecord files: move it away and run "
            f"`jaxrobust data prepare {builder.name}`"
        ) from error
    except ValueError:
        examples, length = (), 0
    if not length:
        raise ValueError(f"no examples in split {split!r} of {builder.name}: it has {', '.join(builder.info.splits)}")
    return examples


def _classes(builder: Any, label: str) -> int | None:
    return getattr(builder.info.features[label], "num_classes", None)


def _plain(name: str) -> str:
    return name.split("/")[0].split(":")[0]


def _unknown(name: str, data_dir: str | Path | None) -> str:
    import tensorflow_datasets

    directory = Path(data_dir or tensorflow_datasets.core.constants.DATA_DIR).expanduser()
    there = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    known = {*tensorflow_datasets.list_builders(with_community_datasets=False), "digits", *there}
    near = difflib.get_close_matches(_plain(name), sorted(known), 1, 0)
    return f"no TFDS data set {name!r}: did you mean {near[0]!r}?"


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        missing = getattr(error, "name", None) or "tensorflow"
        extra = "" if missing.partition(".")[0] == "tensorflow" else f" {missing.partition('.')[0]}"
        raise ValueError(
            f"preparing {name} needs the module {missing}: pip install 'jaxrobust[prepare]'{extra}"
        ) from error
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} could not be prepared: {said}") from error
