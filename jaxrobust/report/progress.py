"""How far a run is: a bar on a terminal, a line now and then anywhere else.

The time left is `(total - step) (t - t0) / (step - step0)` from the first update (t0, step0) on, so that the
compilation before it does not count.
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from jaxrobust.report.wording import duration, number, percent

INTERVAL = 10.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """What `progress` returns; a context manager."""

    def __init__(
        self, total_steps: int, start: int, stream: TextIO, quiet: bool, clock: Callable[[], float], unit: str
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if not 0 <= start <= total_steps:
            raise ValueError(f"start must be in [0, {total_steps}], got {start}")
        self._total, self._start, self._stream, self._quiet, self._clock = total_steps, start, stream, quiet, clock
        self._unit = unit
        self._first: tuple[float, int] | None = None
        self._said: float | None = None
        self._unsaid = ""
        self._known: dict[str, float] = {}
        self._bar: Any = None

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        clean: float | None = None,
        robust: float | None = None,
        images_per_second: float | None = None,
    ) -> None:
        """Say that a step is done.

        Args:
          step: how many steps are done.
          loss: the training loss.
          clean: accuracy on unchanged examples, in [0, 1].
          robust: accuracy on attacked examples, in [0, 1].
          images_per_second: examples a second. What is None keeps its last value.
        """
        found = {"loss": loss, "clean": clean, "robust": robust, "images/s": images_per_second}
        self._known |= {name: float(value) for name, value in found.items() if value is not None}
        now = self._clock()
        self._first = self._first or (now, step)
        text = self._text(step, now, *self._first)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif self._said is None or now - self._said >= INTERVAL:
            self._say(f"{self._unit} {step}/{self._total}  {text}".rstrip(), now)
        else:
            self._unsaid = f"{self._unit} {step}/{self._total}  {text}".rstrip()

    def line(self, text: str) -> None:
        """Print a message without breaking the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def _text(self, step: int, now: float, since: float, first: int) -> str:
        say = {"loss": number, "clean": percent, "robust": percent, "images/s": lambda rate: f"{rate:,.0f}"}
        parts = [f"{name} {say[name](self._known[name])}" for name in say if name in self._known]
        if first < step < self._total:
            parts.append(f"{duration((self._total - step) * (now - since) / (step - first))} left")
        return "  ".join(parts)

    def _say(self, text: str, now: float) -> None:
        self._said, self._unsaid = now, ""
        self.line(text)

    def __enter__(self) -> "Progress":
        if not self._quiet and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            console = Console(file=self._stream, force_terminal=True)
            columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[text]}", markup=False))
            self._bar = Bar(*columns, console=console)
            self._task = self._bar.add_task("", total=self._total, completed=self._start, text="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._unsaid:
            self._say(self._unsaid, self._clock())


def progress(
    total_steps: int,
    start: int = 0,
    stream: TextIO | None = None,
    *,
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
    unit: str = "step",
) -> Progress:
    """Show how far a run is, with its loss, accuracies, speed and the time left.

    Args:
      total_steps: steps of the whole run, at least 1.
      start: the step that the run goes on from, in [0, total_steps].
      stream: where it is shown: a bar where that is a terminal, else a line at most every `INTERVAL` seconds and for
        the last update. Standard error by default.
      quiet: show nothing, as all processes but the first do.
      clock: seconds.
      unit: what is counted.

    Returns:
      A context manager with `update(step, loss=, clean=, robust=, images_per_second=)` and `line(text)`.

    Raises:
      ValueError: if a number of steps is out of range.

    Example:
      >>> import sys
      >>> from jaxrobust.report import progress
      >>> with progress(100, stream=sys.stdout) as bar:
      ...     bar.update(50, loss=0.25, clean=0.9)
      step 50/100  loss 0.25  clean 90.0%

    Reference: McGugan, "Rich", https://github.com/Textualize/rich, 2020.
    """
    return Progress(total_steps, start, sys.stderr if stream is None else stream, quiet, clock, unit)
