"""The state of an evaluation, kept in a file so that a killed one goes on where it was.

An example's result follows from the key and its number: what was settled is read back, the rest is done again, and the
whole comes out as if nothing had happened.
"""

import hashlib
import os
import time
import zipfile
from pathlib import Path

import jax
import numpy as np

from jaxrobust.typing import Key

EVERY_SECONDS = 30.0
_ARRAYS = ("correct", "adversarial", "questions", "seconds", "compile_seconds", "broken", "next_run")


class EvaluationFile:
    """Arrays of an evaluation, and where they are kept.

    Attributes:
      finished: how many attacks are through.
      correct: `[attack, example]`.
      adversarial: `[example, ...]`.
      questions: `[attack]`.
      seconds: `[attack]`.
      compile_seconds: `[attack]`.
      broken: `[example]`, by any attack so far.
      next_run: `[example]`, the run that comes next under the present attack; -1 once it is settled.
    """

    def __init__(self, path: str | Path | None, mark: str, attacks: int, clean: np.ndarray, images: np.ndarray) -> None:
        """Begin, or read what is there.

        Args:
          path: of the file, or None.
          mark: the evaluation's fingerprint.
          attacks: how many.
          clean: `[example]`, right before any attack.
          images: `[example, ...]`, clean.

        Raises:
          ValueError: for a file of another evaluation, or one that is none.
        """
        self.path, self.mark, self.saved = None if path is None else Path(path), mark, time.monotonic()
        self.finished = 0
        self.correct = np.zeros((attacks, len(images)), bool)
        self.adversarial = images.copy()
        self.questions = np.zeros(attacks, np.int64)
        self.seconds, self.compile_seconds = np.zeros(attacks), np.zeros(attacks)
        self.broken, self.next_run = ~clean, np.zeros(len(images), np.int64)
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def keep(self) -> None:
        """Write the state, if the last time was long ago."""
        if self.path is not None and time.monotonic() - self.saved > EVERY_SECONDS:
            self._write(self.path)

    def finish(self, previous: np.ndarray, seconds: float, compile_seconds: float) -> None:
        """An attack is through: note it, and make all examples new to the next one.

        Args:
          previous: `[example]`, robust before it.
          seconds: of wall clock, compilation left out.
          compile_seconds: of compilation.
        """
        self.correct[self.finished] = previous & ~self.broken
        self.seconds[self.finished] += seconds
        self.compile_seconds[self.finished] += compile_seconds
        self.finished += 1
        self.next_run[:] = 0
        if self.path is not None:
            self._write(self.path)

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file, np.load(file) as kept:
                mark, self.finished = str(kept["mark"]), int(kept["finished"])
                found = {name: kept[name] for name in _ARRAYS}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no evaluation ({error}): delete it, or name another file") from error
        if mark != self.mark:
            raise ValueError(
                f"{path} belongs to another evaluation: of other images, another model, key or suite; delete it, or "
                "name another file"
            )
        for name, array in found.items():
            setattr(self, name, array)

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                np.savez(
                    file, mark=self.mark, finished=self.finished, **{name: getattr(self, name) for name in _ARRAYS}
                )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self.saved = time.monotonic()


def fingerprint(key: Key, images: np.ndarray, labels: np.ndarray, clean: np.ndarray, names: list[str]) -> str:
    """What an evaluation's results follow from, the model by what it gets right.

    Args:
      key: the evaluation's.
      images: `[example, ...]`.
      labels: `[example]`.
      clean: `[example]`, right before any attack.
      names: what tells each attack from others, in order.

    Returns:
      Hexadecimal SHA-256.
    """
    key = key if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    digest = hashlib.sha256("\n".join(names).encode())
    for array in (np.asarray(jax.random.key_data(key)), images, labels, clean):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
