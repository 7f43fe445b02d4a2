"""A run's directory, read: what it was, what was measured, and what came out.

`manifest.json` says what the run was, `metrics.jsonl` what was measured; `curve.json` (robust accuracy against radius)
and `gallery.npz` (images before and after an attack) are there once a run has ended, if they were asked for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from jaxrobust.report.rows import Row, read_rows
from jaxrobust.typing import Gallery

CLEAN = ("clean", "accuracy", "clean_accuracy")


class Run(NamedTuple):
    """What a run's directory holds.

    Attributes:
      directory: the directory.
      manifest: what the run was; empty where there is none.
      rows: the rows of `metrics.jsonl`.
      curve: `{"radii": [n], "accuracy": [n], "attack": name}`, None where there is none.
      gallery: images before and after an attack, None where there are none.
    """

    directory: Path
    manifest: Mapping[str, Any]
    rows: list[Row]
    curve: Mapping[str, Any] | None
    gallery: Gallery | None

    @property
    def name(self) -> str:
        """The configuration's name, or else the directory's."""
        return str(section(self.manifest, "configuration").get("name") or self.directory.resolve().name)


class Result(NamedTuple):
    """The accuracies that a run ended with.

    Attributes:
      step: when they were measured.
      split: what they were measured on; `training` is the last batch that was logged.
      clean: the accuracy on unchanged examples, None where it was not measured.
      robust: attack -> accuracy, the lowest first.
    """

    step: int
    split: str
    clean: float | None
    robust: dict[str, float]


def read_run(directory: str | Path) -> Run:
    """Read a run's directory.

    Raises:
      ValueError: if there are no metrics, or a file is damaged; in one line that names it.
    """
    directory = Path(directory)
    if not (directory / "metrics.jsonl").is_file():
        raise ValueError(f"{directory} is not a run: it has no metrics.jsonl")
    return Run(
        directory,
        _object(directory / "manifest.json") or {},
        read_rows(directory / "metrics.jsonl"),
        _curve(directory / "curve.json"),
        _gallery(directory / "gallery.npz"),
    )


def section(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the manifest; empty where it is absent."""
    part = manifest.get(name)
    return part if isinstance(part, Mapping) else {}


def is_number(value: Any) -> bool:
    """Whether a row's value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_share(name: str, values: list[float]) -> bool:
    """Whether an evaluation's metric is an accuracy."""
    return "loss" not in name and all(0 <= value <= 1 for value in values)


def result(rows: list[Row]) -> Result | None:
    """The accuracies of the last evaluation, else of the last training row; None where none was measured."""
    evaluations = [row for row in rows if "split" in row]
    training = [
        {name: value for name, value in row.items() if name == "step" or name.endswith("accuracy")}
        for row in rows
        if "split" not in row
    ]
    for kind in (evaluations, training):
        if not kind:
            continue
        last = kind[-1]
        found = _merged([row for row in kind if row["step"] == last["step"] and row.get("split") == last.get("split")])
        clean = next((found[name] for name in CLEAN if name in found), None)
        robust = {name: value for name, value in found.items() if name not in CLEAN}
        if clean is not None or robust:
            ordered = dict(sorted(robust.items(), key=lambda pair: pair[1]))
            return Result(last["step"], str(last.get("split", "training")), clean, ordered)
    return None


def _merged(rows: list[Row]) -> dict[str, float]:
    """Shares of several rows of one step; a later one wins."""
    found = {name: value for row in rows for name, value in row.items() if name != "step" and is_number(value)}
    return {name: value for name, value in found.items() if is_share(name, [value])}


def _object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it holds no object)")
    return found


def _curve(path: Path) -> dict[str, Any] | None:
    curve = _object(path)
    if curve is None:
        return None
    radii, accuracy = curve.get("radii"), curve.get("accuracy")
    lists = isinstance(radii, list) and isinstance(accuracy, list)
    if not lists or len(radii) != len(accuracy) or not all(map(is_number, radii + accuracy)):
        raise ValueError(f"{path} is damaged (radii and accuracy must be lists of numbers of one length)")
    return curve


def _gallery(path: Path) -> Gallery | None:
    if not path.exists():
        return None
    try:
        # NumPy leaves a damaged file open, so it is opened here.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            gallery = Gallery(*(arrays[name] for name in Gallery._fields))
    except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    shape = gallery.images.shape
    if len(shape) != 4 or shape[-1] not in (1, 3) or gallery.adversarial.shape != shape:
        raise ValueError(f"{path}: images must be [n, height, width, 1 or 3] before and after, got {shape}")
    if any(part.shape != shape[:1] for part in gallery[2:]):
        raise ValueError(f"{path}: classes must be [{shape[0]}], got {[part.shape for part in gallery[2:]]}")
    return gallery
