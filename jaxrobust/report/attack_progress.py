"""How far an evaluation under a suite of attacks is: one bar, or one run of lines, for each attack."""

import sys
import time
from types import TracebackType
from typing import TextIO

from jaxrobust.attacks.evaluate import Standing
from jaxrobust.report.progress import Progress, progress


class AttackProgress:
    """What `attack_progress` returns; a context manager, called with every `Standing`."""

    def __init__(self, stream: TextIO, quiet: bool) -> None:
        self._stream, self._quiet = stream, quiet
        self._shown = ("", 0)
        self._bar: Progress | None = None

    def __call__(self, standing: Standing) -> None:
        """Show how an attack stands."""
        if (standing.name, standing.total) != self._shown:
            self._close()
            self._shown = (standing.name, standing.total)
            self._bar = progress(standing.total, stream=self._stream, quiet=self._quiet, unit=standing.name).__enter__()
        assert self._bar is not None
        self._bar.update(standing.settled, robust=standing.robust / standing.examples)

    def line(self, text: str) -> None:
        """Print a message without breaking the bar."""
        bar = self._bar or Progress(1, 0, self._stream, self._quiet, time.monotonic, "")
        bar.line(text)

    def __enter__(self) -> "AttackProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def attack_progress(stream: TextIO | None = None, *, quiet: bool = False) -> AttackProgress:
    """Show how far an evaluation is, attack by attack.

    Args:
      stream: where; a bar where it is a terminal, else a line now and then. Standard error by default.
      quiet: show nothing.

    Returns:
      A context manager that is `progress` of `attacks.evaluate`.

    Example:
      >>> import sys
      >>> from jaxrobust.attacks.evaluate import Standing
      >>> with attack_progress(sys.stdout) as show:
      ...     show(Standing("square", settled=5, total=10, robust=40, examples=50))
      square 5/10  robust 80.0%
    """
    return AttackProgress(sys.stderr if stream is None else stream, quiet)
