"""The rows of `metrics.jsonl` as TensorBoard events.

A number `name` of a row becomes the scalar `train/name` at the row's step, or `split/name` where the row has a split.
Needs the extra `tensorboard`.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxrobust.report.rows import plain


class Events:
    """A writer with the interface of `Rows`.

    Args:
      directory: where the event files go, made when absent.
      after: the step that a run goes on from; TensorBoard then hides what an earlier part of the run wrote beyond it.

    Raises:
      ImportError: if tensorboardX is not installed.

    Example:
      >>> import tempfile
      >>> from jaxrobust.report.tensorboard import Events
      >>> with tempfile.TemporaryDirectory() as directory, Events(directory) as events:
      ...     events.write({"step": 10, "loss": 0.5})

    Reference: Huang, "tensorboardX", https://github.com/lanpa/tensorboardX, 2017.
    """

    def __init__(self, directory: str | Path, *, after: int | None = None) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard events need tensorboardX: pip install 'jaxrobust[tensorboard]'", name="tensorboardX"
            ) from error
        self._writer = SummaryWriter(str(directory), purge_step=None if after is None else after + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of one row.

        Args:
          row: as for `Rows.write`; strings, booleans and numbers that are not finite are left out.

        Raises:
          ValueError: if there is no integer step, or a value is no scalar.
        """
        found = plain(row)
        step, split = found.pop("step"), found.pop("split", "train")
        for name, value in found.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(f"{split}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file; a context manager does it."""
        self._writer.close()

    def __enter__(self) -> "Events":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
