"""Images and labels from idx files, the form in which MNIST and its kin are given; gzipped or plain.

A file is a magic number (0, 0, type, number of axes), the axes' lengths as big-endian 32-bit integers, and the numbers.
Type 8 is uint8.

Reference: LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition",
https://doi.org/10.1109/5.726791, 1998 (MNIST).
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from jaxrobust.data.arrays import arrays
from jaxrobust.typing import Source

UINT8 = 8


def idx(images: str | Path, labels: str | Path, *, classes: int | None = None, shuffle: bool = True) -> Source:
    """A source of the examples in a pair of idx files, held in device memory.

    Args:
      images: file of `[N, height, width]` uint8, such as `train-images-idx3-ubyte.gz`; a channel is added.
      labels: file of `[N]` uint8, such as `train-labels-idx1-ubyte.gz`.
      classes: number of classes that the labels must lie below; None for any.
      shuffle: as in `arrays`.

    Returns:
      A `Source` of images `[height, width, 1]`.

    Raises:
      ValueError: if a file is absent, no idx file, cut short or of other axes, or as `arrays`.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxrobust import data
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     images, labels = pathlib.Path(directory, "images"), pathlib.Path(directory, "labels")
      ...     _ = images.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes(4))
      ...     _ = labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
      ...     data.idx(images, labels).size
      1
    """
    found, classes_found = _read(Path(images), 3), _read(Path(labels), 1)
    return arrays(found[..., None], classes_found, classes=classes, shuffle=shuffle)


def _read(path: Path, axes: int) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"no file {path}: give the path of an idx file, gzipped or plain")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} cannot be decompressed ({error}): fetch it again") from error
    magic = bytes([0, 0, UINT8, axes])
    if content[:4] != magic:
        raise ValueError(
            f"{path} must begin with {magic.hex()} (idx of uint8, {axes} axes), got {content[:4].hex() or 'nothing'}"
        )
    header = 4 + 4 * axes
    shape = np.frombuffer(content[4:header].ljust(4 * axes, b"\0"), ">u4").tolist()
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise ValueError(
            f"{path} must have {expected} bytes for shape {tuple(shape)}, got {len(content)}: fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
