r"""A run's `metrics.jsonl`: one strict JSON object a line, in the order in which things were measured.

A row holds an integer `step` and numbers, strings, booleans or nulls under other names; a row with a `split` is an
evaluation, the others are training. JSON knows no NaN and no infinity: such numbers are written as null. Rows are only
ever appended and each is flushed, so that a killed run leaves at most its last line torn.
"""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

Row: TypeAlias = dict[str, Any]


class Rows:
    r"""An append-only writer of rows.

    An existing file is continued; a torn last line is cut off first, so that no row is glued to it.

    Args:
      path: the file, made when absent; its directory exists.

    Raises:
      ValueError: if an existing file holds a line that is no row.

    Example:
      >>> import tempfile
      >>> from jaxrobust.report import Rows, read_rows
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     with Rows(f"{directory}/metrics.jsonl") as rows:
      ...         rows.write({"step": 10, "loss": 0.5, "gradient_norm": float("inf")})
      ...     read_rows(f"{directory}/metrics.jsonl")
      [{'step': 10, 'loss': 0.5, 'gradient_norm': None}]

    Reference: Ward et al., "JSON Lines", https://jsonlines.org, 2013.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if path.exists():
            whole = b"".join(line for line, _ in _parse(path))
            if whole != path.read_bytes():
                _replace(path, whole)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row and flush it.

        Args:
          row: an integer `step` and further scalars: Python's, NumPy's or zero-dimensional arrays.

        Raises:
          ValueError: if there is no integer step, or a value is no scalar.
        """
        self._file.write(json.dumps(plain(row), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a context manager does it."""
        self._file.close()

    def __enter__(self) -> "Rows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of a file.

    Args:
      path: the file. A last line that was torn, by a kill in the middle of a write, is left out.

    Returns:
      The rows, in order.

    Raises:
      ValueError: if there is no file, or another line is no row; it names the line.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxrobust.report import read_rows
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = pathlib.Path(directory, "metrics.jsonl")
      ...     _ = path.write_text('{"step": 1, "loss": 2.0}\\n{"step": 2, "lo')
      ...     read_rows(path)
      [{'step': 1, 'loss': 2.0}]

    Reference: Ward et al., "JSON Lines", https://jsonlines.org, 2013.
    """
    return [row for _, row in _parse(Path(path))]


def truncate_rows(path: str | Path, step: int) -> None:
    """Drop the rows after a step, and a final evaluation, as a run does that goes on from a checkpoint.

    The file is replaced at once: a kill leaves the old rows or the new ones.

    Args:
      path: the file.
      step: rows with `row["step"] > step` are dropped, and those marked `final`, which are measured anew.

    Raises:
      ValueError: if there is no file, or a line is no row.

    Example:
      >>> import tempfile
      >>> from jaxrobust.report import Rows, read_rows, truncate_rows
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = f"{directory}/metrics.jsonl"
      ...     with Rows(path) as rows:
      ...         rows.write({"step": 10})
      ...         rows.write({"step": 20})
      ...     truncate_rows(path, 10)
      ...     read_rows(path)
      [{'step': 10}]

    Reference: Ward et al., "JSON Lines", https://jsonlines.org, 2013.
    """
    path = Path(path)
    _replace(path, b"".join(line for line, row in _parse(path) if row["step"] <= step and not row.get("final")))


def plain(row: Mapping[str, Any]) -> Row:
    """A row of Python scalars, with null for what is not finite.

    Raises:
      ValueError: if there is no integer step, or a value is no scalar.
    """
    found = {name: _scalar(name, value) for name, value in row.items()}
    if not _is_step(found.get("step")):
        raise ValueError(f"step must be an integer, got {row.get('step')!r}")
    return found


def _scalar(name: str, value: Any) -> Any:
    if hasattr(value, "dtype") and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ValueError(f"{name} must be a number, a string or None, got {value!r}")


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parse(path: Path) -> list[tuple[bytes, Row]]:
    """The whole lines of a file, each with its newline and its row."""
    if not path.is_file():
        raise ValueError(f"no metrics at {path}: give a run's metrics.jsonl")
    *lines, tail = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append((line + b"\n", _row(line)))
        except ValueError as error:
            raise ValueError(f"{path} line {number} is no row ({error}): remove the line") from error
    with suppress(ValueError):
        # A kill between the last brace and the newline tears nothing off.
        found.append((tail + b"\n", _row(tail)))
    return found


def _row(line: bytes) -> Row:
    row = json.loads(line, parse_constant=_refuse)
    if not isinstance(row, dict) or not _is_step(row.get("step")):
        raise ValueError("it has no integer step")
    return row


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
