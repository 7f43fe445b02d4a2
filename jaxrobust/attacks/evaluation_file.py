"""The state of an evaluation, kept in a file so that a killed one goes on where it was.

An example's result follows from the key and its number: what was settled is read back, the rest is done again, and the
whole comes out as if nothing had happened.
"""

import hashlib
import os
import re
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.attacks.search import Answer, Search, SearchState, begin
from jaxrobust.typing import Array, Attack, Key, Predict

EVERY_SECONDS = 30.0
CLOSE = 1e-3
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
      told: lines on what finished attacks claimed and the model did not confirm.
    """

    def __init__(
        self,
        path: str | Path | None,
        mark: str,
        attacks: int,
        logits: np.ndarray,
        slopes: np.ndarray | None,
        clean: np.ndarray,
        images: np.ndarray,
    ) -> None:
        """Begin, or read what is there.

        Args:
          path: of the file, or None.
          mark: the evaluation's fingerprint.
          attacks: how many.
          logits: `[example, class]` of the clean images, by which a model is known again.
          slopes: `[few, ...]`, gradients at the first images, by which it is known again too: a stand-in with other
            gradients has the same logits. None of a model that has none.
          clean: `[example]`, right before any attack.
          images: `[example, ...]`, clean.

        Raises:
          ValueError: for a file of another evaluation, or one that is none.
          OSError: if it cannot be written.
        """
        self.path, self.mark, self.saved = None if path is None else Path(path), mark, time.monotonic()
        self.finished, self.logits, self.told = 0, logits, list[str]()
        self.slopes = np.zeros_like(images[:1]) if slopes is None else slopes
        self.correct = np.zeros((attacks, len(images)), bool)
        self.adversarial = images.copy()
        self.questions = np.zeros(attacks, np.int64)
        self.seconds, self.compile_seconds = np.zeros(attacks), np.zeros(attacks)
        self.broken, self.next_run = ~clean, np.zeros(len(images), np.int64)
        if self.path is not None and self.path.exists():
            self._read(self.path)
        elif self.path is not None:
            self._write(self.path)

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
            with path.open("rb") as file, _archive(file) as kept:
                mark, self.finished = str(kept["mark"]), int(kept["finished"])
                found = {name: kept[name] for name in _ARRAYS}
                logits, slopes, told = kept["logits"], kept["slopes"], [str(line) for line in kept["told"]]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no evaluation ({error}): delete it, or name another file") from error
        # Devices round differently: the model is the same where its logits are close, and most of its gradients, which
        # rounding moves where a unit stands between on and off.
        theirs, ours = (np.where(np.isfinite(found), found, 0) for found in (slopes, self.slopes))
        same = _close(logits, self.logits).all() and _close(theirs, ours).mean() > 0.5
        if mark != self.mark or not same:
            raise ValueError(
                f"{path} belongs to another evaluation: of other images, another model, key or suite; delete it, or "
                "name another file"
            )
        self.told = told
        for name, array in found.items():
            setattr(self, name, array)

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                kept: dict[str, Any] = {name: getattr(self, name) for name in (*_ARRAYS, "logits", "slopes")}
                np.savez(file, mark=self.mark, finished=self.finished, told=np.array(self.told, str), **kept)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self.saved = time.monotonic()


def _archive(file: BinaryIO) -> Any:
    found = np.load(file)
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise ValueError("one array, and no archive of several")
    return found


def _close(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Row by row, whether the difference is small beside the largest entry; of other shapes, nothing is."""
    if ours.shape != theirs.shape:
        return np.zeros(1, bool)
    apart, largest = (np.abs(rows).reshape(len(rows), -1).max(1) for rows in (ours - theirs, ours))
    return apart <= CLOSE * largest


def fingerprint(
    key: Key, images: np.ndarray, labels: np.ndarray, attacks: Mapping[str, Attack], logits_fn: Predict, classes: int
) -> str:
    """What an evaluation's results follow from, but for the model's parameters: an attack is known by its program.

    Args:
      key: the evaluation's.
      images: `[example, ...]`.
      labels: `[example]`.
      attacks: name -> attack, in order.
      logits_fn: the classifier, which a program of an attack that is no `Search` runs through.
      classes: number of logits.

    Returns:
      Hexadecimal SHA-256.
    """
    key = key if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    digest, arrays = hashlib.sha256(), [np.asarray(jax.random.key_data(key)), images, labels]
    for name, attack in attacks.items():
        program = _program(attack, images, labels, logits_fn, classes)
        # Addresses of functions differ from process to process.
        digest.update(f"{name} {re.sub('0x[0-9a-f]+', '', str(program.jaxpr))}".encode())
        arrays += [np.asarray(constant) for constant in program.consts]
        if isinstance(attack, Search):
            digest.update(f"{attack.runs(classes)} {attack.draws} {attack.radius}".encode())
            arrays += [] if attack.start is None else [np.asarray(attack.start)]
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _program(attack: Attack, images: np.ndarray, labels: np.ndarray, logits_fn: Predict, classes: int) -> Any:
    """The jaxpr of an attack on one example: of a search's run, its first step and its look."""
    keys, image, label = jax.random.split(jax.random.key(0), 1), images[:1], labels[:1]
    if not isinstance(attack, Search):
        return jax.make_jaxpr(lambda *given: attack(given[0], logits_fn, *given[1:]))(keys, image, label)

    def first_step(keys: Array, image: Array, label: Array, logits: Array) -> SearchState:
        state = begin(
            attack, keys, image, label, logits, jnp.zeros(1, jnp.int32), image if attack.start is not None else None
        )
        value = gradient = None
        if attack.loss is not None:
            value = jax.vmap(attack.loss)(state.memory, logits, label)
            gradient = jnp.zeros((1, *value.shape[1:], *image.shape[1:]), image.dtype)
        state = jax.vmap(attack.tell)(state, image, label, Answer(logits, value, gradient))
        return state if attack.look is None else jax.vmap(attack.look)(state, image, label, logits)

    return jax.make_jaxpr(first_step)(keys, image, label, jnp.zeros((1, classes), images.dtype))
