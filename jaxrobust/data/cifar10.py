"""CIFAR-10 from files: 50,000 training and 10,000 test images `[32, 32, 3]` of ten classes.

Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf, 2009.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrobust.data.arrays import Splits, arrays
from jaxrobust.data.npz import read_npz
from jaxrobust.typing import Source

CLASSES = 10
RECORD = 1 + 3 * 32 * 32
"""Bytes of one example in the binary version: its label, then the red, green and blue planes row by row."""


def cifar10(directory: str | Path) -> Splits:
    """CIFAR-10, held in device memory.

    The directory holds either the official binary version (`data_batch_1.bin` ... and `test_batch.bin`, or the folder
    `cifar-10-batches-bin` with them) or `train*.npz` and `test.npz`, read in the order of their names. An `.npz` file
    has `label` `[N]` and `image` uint8 `[N, 32, 32, 3]`, or, a third smaller, `d2` uint8 `[N, 3, 32, 32]`: red less
    green, green, blue less green, each as differences along both axes, all modulo 256.

    Args:
      directory: of the files.

    Returns:
      `Splits` of uint8 images.

    Raises:
      ValueError: if files are absent, cut short or of another form.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxrobust import data
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     for name in ("data_batch_1.bin", "test_batch.bin"):
      ...         _ = pathlib.Path(directory, name).write_bytes(bytes([7]) + bytes(3072))
      ...     data.cifar10(directory).train.size
      1
    """
    directory = Path(directory)
    for folder in (directory, directory / "cifar-10-batches-bin"):
        train = sorted(folder.glob("data_batch_*.bin"))
        if train:
            return _splits(train, folder / "test_batch.bin")
    train = sorted(directory.glob("train*.npz"))
    if not train:
        raise ValueError(
            f"no CIFAR-10 in {directory}: it needs data_batch_1.bin ... and test_batch.bin (the binary version, "
            "not the pickled one), or train*.npz and test.npz"
        )
    return _splits(train, directory / "test.npz")


def _splits(train: Sequence[Path], test: Path) -> Splits:
    return Splits(_source(train, shuffle=True), _source([test], shuffle=False))


def _source(paths: Sequence[Path], shuffle: bool) -> Source:
    read = _binary if paths[0].suffix == ".bin" else _compressed
    images, labels = zip(*map(read, paths), strict=True)
    return arrays(np.concatenate(images), np.concatenate(labels), classes=CLASSES, shuffle=shuffle)


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"no file {path}: the binary version of CIFAR-10 has it")
    found = np.fromfile(path, np.uint8)
    if not found.size or found.size % RECORD:
        raise ValueError(f"{path} must be of {RECORD}-byte records, got {found.size} bytes: fetch it again")
    records = found.reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def _compressed(path: Path) -> tuple[np.ndarray, np.ndarray]:
    found = read_npz(path, "label", optional=("image", "d2"))
    if "image" in found:
        return found["image"], found["label"]
    if "d2" not in found:
        raise ValueError(f"{path} has neither image nor d2: save uint8 images [N, 32, 32, 3] as image")
    return restored(found["d2"]), found["label"]


def restored(differences: np.ndarray) -> np.ndarray:
    """Images from their differences along both axes, of the green plane and of red and blue less green.

    Args:
      differences: `[N, 3, height, width]` uint8, modulo 256.

    Returns:
      `[N, height, width, 3]` uint8.

    Raises:
      ValueError: for another shape or dtype.

    Example:
      >>> import numpy as np
      >>> differences = np.zeros((1, 3, 1, 2), np.uint8)
      >>> differences[0, :, 0] = [[1, 0], [5, 1], [255, 0]]
      >>> restored(differences).tolist()
      [[[[6, 5, 4], [7, 6, 5]]]]
    """
    if differences.ndim != 4 or differences.shape[1] != 3 or differences.dtype != np.uint8:
        raise ValueError(
            f"d2 must be uint8 [N, 3, height, width], got {differences.dtype} of shape {differences.shape}"
        )
    planes = differences.cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)
    planes[:, ::2] += planes[:, 1:2]
    return planes.transpose(0, 2, 3, 1)
