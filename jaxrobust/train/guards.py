"""What stands between a run and its machine: a directory that another run holds, a full disk, a signal to stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental import multihost_utils


@contextmanager
def writing(directory: Path | None) -> Iterator[None]:
    """Say what to do where the disk is full."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        remedy = "make room and run the same command again: it goes on from the last checkpoint"
        raise OSError(f"{directory} could not be written ({reason}): {remedy}") from error


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold a run's directory; another run in it is refused. It opens again however the process ends."""
    import fcntl

    with (directory / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another run goes on in {directory}: wait for it, or give another --run") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def on_sigterm() -> Iterator[threading.Event]:
    """An event that a SIGTERM sets; several processes agree on a step through JAX's preemption service."""
    event = threading.Event()
    alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    if not alone:
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def agree(stopping: threading.Event, step: int) -> bool:
    """Whether all processes stop before this step."""
    if jax.process_count() == 1:
        return stopping.is_set()
    return multihost_utils.reached_preemption_sync_point(step)
