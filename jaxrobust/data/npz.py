"""Examples from `.npz` files: arrays `image` and `label`, as real and generated images are commonly given."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrobust.data.arrays import arrays
from jaxrobust.typing import Source


def npz(
    path: str | Path | Sequence[str | Path],
    *,
    image: str = "image",
    label: str = "label",
    classes: int | None = None,
    shuffle: bool = True,
) -> Source:
    """A source of the examples in one or more `.npz` files, held in device memory.

    A training and a test file make `Splits(npz(train), npz(test, shuffle=False))`.

    Args:
      path: a file, or several to be joined in this order.
      image: name of the images' array: `[N, height, width, channel]` or `[N, feature]`, uint8 or floats in [0, 1].
      label: name of the labels' array: `[N]` integers.
      classes: number of classes that the labels must lie below; None for any.
      shuffle: as in `arrays`.

    Returns:
      A `Source`.

    Raises:
      ValueError: if a file is absent, cut short, pickled or without an array of that name, or as `arrays`.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> from jaxrobust import data
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = pathlib.Path(directory, "generated.npz")
      ...     np.savez(path, image=np.zeros((3, 8, 8, 1), np.uint8), label=np.array([0, 1, 1]))
      ...     data.npz([path, path]).size
      6
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise ValueError("path must be at least one file, got none")
    found = [read_npz(Path(each), image, label) for each in paths]
    kinds = sorted({f"{each[image].dtype}{list(each[image].shape[1:])}" for each in found})
    if len(kinds) > 1:
        raise ValueError(f"images of several files must be of one dtype and shape, got {kinds[0]} and {kinds[1]}")
    images, labels = (np.concatenate([each[name] for each in found]) for name in (image, label))
    return arrays(images, labels, classes=classes, shuffle=shuffle)


def read_npz(path: Path, *names: str, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read named arrays of a file, and nothing else in it.

    Args:
      path: of the file.
      *names: arrays that it must have.
      optional: arrays that it may have; the first that is there is read.

    Returns:
      Name -> array.

    Raises:
      ValueError: if the file is absent, cut short, pickled, or without an array of that name.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}: give the path of an .npz file with {' and '.join(names)}")
    with path.open("rb") as file:
        try:
            opened = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no complete .npz file ({error}): write it again with numpy.savez") from error
        if isinstance(opened, np.ndarray):
            raise ValueError(f"{path} holds an array without a name: write numpy.savez(path, image=..., label=...)")
        for name in names:
            if name not in opened:
                raise ValueError(f"{path} has no array {name!r}: it has {', '.join(opened) or 'none'}")
        chosen = [*names, *[name for name in optional if name in opened][:1]]
        return {name: _array(opened, name, path) for name in chosen}


def _array(opened: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        return opened[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{name!r} of {path} is a pickled array of objects: save it with a numeric dtype"
            ) from error
        raise ValueError(f"{name!r} of {path} cannot be read ({error}): write it again with numpy.savez") from error
    except (EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name!r} of {path} cannot be read ({error}): write it again with numpy.savez") from error
