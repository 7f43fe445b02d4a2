"""Checkpoints of a run: asynchronous, by Orbax, readable on another number of devices.

A checkpoint holds the `TrainState` (with the root key and the step, which fix the order of the data), the reduction's
state of every worker, and whatever a sampler's `refresh` changed in its source. It is committed by a rename, so that a
run killed while saving keeps the one before.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import ReduceState
from jaxrobust.train.step import Trainer, TrainState
from jaxrobust.typing import PyTree, State

KEPT = 3


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      state: the shared state.
      reduction: the reduction's state, for as many workers as there are now.
      source: changed leaves of the source's state, by position.
      resized: whether the number of workers differs, so that their own memories began afresh.
    """

    state: TrainState
    reduction: State
    source: dict[str, Any]
    resized: bool


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      directory: where they lie; made if absent.
      trainer: whose states they are.
      read_only: whether nothing is ever written, as beside a run that goes on.
    """

    def __init__(self, directory: Path, trainer: Trainer, *, read_only: bool = False) -> None:
        self._directory, self._trainer, self._superseded = directory, trainer, -1
        options = (
            ocp.CheckpointManagerOptions(read_only=True)
            if read_only
            else ocp.CheckpointManagerOptions(
                max_to_keep=KEPT, enable_async_checkpointing=True, cleanup_tmp_directories=True
            )
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, reduction: State, source: dict[str, Any]) -> None:
        """Begin to save; returns before the bytes are on disk. Raises OSError where an earlier save failed."""
        step = int(state.step)
        for later in [s for s in self.steps() if 0 <= self._superseded < s]:
            self._manager.delete(later)
        self._superseded = -1
        if step in self.steps():
            return
        shapes = [list(leaf.shape[1:]) for leaf in jax.tree.leaves(reduction)]
        about = {"workers": self._trainer.workers, "source": sorted(source), "reduction": shapes}
        items = {"state": ocp.args.StandardSave(state), "about": ocp.args.JsonSave(about)}
        if jax.tree.leaves(reduction):
            items["reduction"] = ocp.args.StandardSave(reduction)
        if source:
            items["source"] = ocp.args.StandardSave(source)
        _as_os_error(lambda: self._manager.save(step, args=ocp.args.Composite(**items)))

    def wait(self) -> None:
        """Block until all is on disk. Raises OSError where a save failed."""
        _as_os_error(self._manager.wait_until_finished)

    def close(self) -> None:
        """Finish saving and let go of the directory. Raises OSError where a save failed."""
        _as_os_error(self._manager.close)

    def supersede_after(self, step: int) -> None:
        """Let the next save replace checkpoints later than a step, from which a run goes on by another way."""
        self._superseded = step

    def restore_state(self, step: int) -> TrainState:
        """Read the shared state of one checkpoint, all that an evaluation needs; raises like `restore`."""
        state, _ = jax.eval_shape(self._trainer.init)
        return self._read(step, {"state": _abstract(state, self._everywhere)})["state"]

    def restore(self, step: int, source: State) -> Restored:
        """Read one checkpoint onto the trainer's devices.

        Args:
          step: one of `steps()`.
          source: the source's state as `init` gives it: says what changed leaves look like.

        Returns:
          What it held.

        Raises:
          ValueError: if it cannot be read, naming the step.
        """
        state, fresh = jax.eval_shape(self._trainer.init)
        leaves, about = jax.tree.leaves(source), self._about(step)
        resized = about["workers"] != self._trainer.workers
        wanted = {"state": _abstract(state, self._everywhere)}
        if jax.tree.leaves(fresh):
            # Memories of columns are as long as their number of workers made them.
            leaves_then, structure = jax.tree.flatten(fresh)
            shapes = about.get("reduction") or [leaf.shape[1:] for leaf in leaves_then]
            saved = jax.tree.unflatten(
                structure,
                [
                    jax.ShapeDtypeStruct((about["workers"], *shape), leaf.dtype)
                    for leaf, shape in zip(leaves_then, shapes, strict=True)
                ],
            )
            wanted["reduction"] = _abstract(saved, self._everywhere if resized else self._trainer.split)
        if about["source"]:
            changed = {name: leaves[int(name)] for name in about["source"]}
            wanted["source"] = _abstract(changed, self._everywhere)
        found = self._read(step, wanted)
        reduction = found.get("reduction", fresh)
        if resized and jax.tree.leaves(fresh):
            reduction = self._resize(reduction)
        return Restored(found["state"], reduction, found.get("source", {}), resized)

    def _about(self, step: int) -> dict[str, Any]:
        try:
            return json.loads((self._directory / str(step) / "about" / "metadata").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise self._unreadable(step, error) from error

    def _read(self, step: int, wanted: dict[str, PyTree]) -> dict[str, Any]:
        arguments = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**arguments)).items())
        except Exception as error:
            # Whatever a damaged file makes Orbax or TensorStore raise: their error types are no part of an interface.
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> ValueError:
        return ValueError(f"checkpoint {step} in {self._directory} cannot be read ({_first_line(error)})")

    @property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self._trainer.mesh, P())

    def _resize(self, saved: State) -> State:
        """Keep what all workers share, begin their own memories afresh."""
        _, fresh = self._trainer.init()
        sharding = self._trainer.split

        def keep(new: Any, old: Any) -> Any:
            if not isinstance(new, ReduceState):
                return new
            shared = jax.tree.map(lambda n, o: jnp.broadcast_to(o[0], n.shape), new.shared, old.shared)
            return ReduceState(jax.device_put(shared, sharding), new.own)

        return jax.tree.map(keep, fresh, saved, is_leaf=lambda node: isinstance(node, ReduceState))


def changed_leaves(source: State, original: State) -> dict[str, Any]:
    """Leaves of a source's state that `refresh` replaced, by position: examples themselves are never saved."""
    pairs = zip(jax.tree.leaves(source), jax.tree.leaves(original), strict=True)
    return {str(i): new for i, (new, old) in enumerate(pairs) if new is not old}


def with_leaves(source: State, changed: dict[str, Any]) -> State:
    """The source's state with some leaves replaced."""
    leaves, structure = jax.tree.flatten(source)
    return jax.tree.unflatten(structure, [changed.get(str(i), leaf) for i, leaf in enumerate(leaves)])


def _abstract(tree: PyTree, sharding: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _as_os_error(action: Callable[[], object]) -> None:
    try:
        action()
    except (OSError, ValueError, RuntimeError) as error:
        raise OSError(f"checkpoint: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
