"""Train an experiment: the loop around the step, and the directory of a run.

A run directory holds data and never code:

    manifest.json   versions, commit, resolved configuration, data hashes, seed, devices
    metrics.jsonl   a row every `log_every` steps and for every evaluation
    checkpoints/    the last ones, by Orbax
    curve.json, gallery.npz, report.html   written after the last step

The same call on the same directory goes on where the last checkpoint was taken.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.tree_util import Partial

from jaxrobust.report.page import write_report
from jaxrobust.report.progress import progress
from jaxrobust.report.rows import Rows, read_rows, truncate_rows
from jaxrobust.report.run import is_share
from jaxrobust.report.tensorboard import Events
from jaxrobust.train.checkpoint import Checkpoints, changed_leaves, with_leaves
from jaxrobust.train.configuration import Configuration
from jaxrobust.train.experiment import Experiment
from jaxrobust.train.guards import agree, lock, on_sigterm, writing
from jaxrobust.train.manifest import check_same, describe, read_manifest, write_manifest
from jaxrobust.train.step import (
    SUSPICION,
    Trainer,
    TrainState,
    keys_of_run,
    make_mesh,
    model_of,
    parameter_count,
    prepare_training,
)
from jaxrobust.typing import Batch, Evaluated, Evaluation, Key, Params, Predict, Source, State, Stream


class Diverged(RuntimeError):
    """A step whose update was not finite; the last good checkpoint stands."""


class Fitted(NamedTuple):
    """What a run ended with.

    Attributes:
      state: the last `TrainState`.
      predict: inputs to logits, with the parameters that are evaluated.
      rows: what was logged, in order.
      evaluated: the final evaluation; None if the run was stopped before its end, or has no test examples.
      finished: False if a signal stopped it.
    """

    state: TrainState
    predict: Predict
    rows: list[dict[str, Any]]
    evaluated: Evaluated | None
    finished: bool

    @property
    def params(self) -> Params:
        """The parameters that are evaluated: their moving average where there is one."""
        return model_of(self.state)[0]


def fit(
    experiment: Experiment,
    directory: str | Path | None = None,
    *,
    configuration: Configuration | None = None,
    devices: list[jax.Device] | None = None,
    resume_from: int | None = None,
    tensorboard: bool = False,
    stream: TextIO | None = None,
) -> Fitted:
    """Train an experiment to its end, or until a SIGTERM.

    Args:
      experiment: what to train.
      directory: the run's directory; an existing run of the same configuration goes on. None keeps nothing on disk.
      configuration: the file that the experiment came from, for the manifest.
      devices: where to train; all devices of all processes by default.
      resume_from: step of the checkpoint to go on from; the last one by default.
      tensorboard: whether to write TensorBoard events as well (extra `tensorboard`).
      stream: where progress goes; standard error by default.

    Returns:
      A `Fitted`.

    Raises:
      ValueError: if the directory belongs to another configuration or another run that goes on, a checkpoint cannot be
        read, or the devices do not divide the batch.
      Diverged: if an update is not finite.
      OSError: if the directory cannot be written; its last checkpoint stands.

    Example:
      >>> from jaxrobust import data, models, train
      >>> digits = data.digits()
      >>> experiment = train.Experiment(model=models.mlp(10), data=digits.train, test=digits.test, steps=20)
      >>> train.fit(experiment).finished
      True
    """
    directory = None if directory is None else Path(directory)
    with ExitStack() as stack:
        run = _Run(experiment, directory, configuration, make_mesh(devices, experiment.devices_per_worker), stack)
        run.resume(resume_from)
        return run.train(tensorboard, stream)


def predictor(trainer: Trainer, state: TrainState) -> Predict:
    """Inputs to logits with a state's parameters, as a pytree that a jitted function can take."""
    return Partial(trainer.logits, *model_of(state))


def sharded(source: Source, trainer: Trainer) -> Source:
    """A source whose batches are split over the trainer's devices; what is computed on them is split too."""

    def batch(state: State, step: Any, rows: Any, size: int) -> Batch:
        found = source.batch(state, step, rows, size)
        if len(rows) % trainer.mesh.size:
            return found
        return jax.lax.with_sharding_constraint(found, trainer.split)

    return source._replace(init=lambda key: trainer.place(source.init(key)), batch=batch)


@dataclass
class _Run:
    """One run: what it is made of, and where it stands."""

    experiment: Experiment
    directory: Path | None
    configuration: Configuration | None
    mesh: jax.sharding.Mesh
    stack: ExitStack
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        experiment = self.experiment
        self.trainer = prepare_training(experiment, self.mesh)
        self.main = jax.process_index() == 0
        self.about = describe(experiment, self.configuration)
        if self.directory is not None:
            self._claim(self.directory)
        self.keys = keys_of_run(experiment.seed)
        self.original = self._examples(self.keys.data)
        self.source = self.original
        self.test = None if experiment.test is None else sharded(experiment.test, self.trainer)
        self.state, self.reduction = self.trainer.init()
        self.about["parameters"] = parameter_count(self.state)
        self.checkpoints = None
        if self.directory is not None:
            self.checkpoints = Checkpoints(self.directory / "checkpoints", self.trainer)
            self.stack.callback(self._close, self.checkpoints)

    def _examples(self, key: Key) -> State:
        """The source's first state, on the devices; () for a stream."""
        data = self.experiment.data
        return () if isinstance(data, Stream) else self.trainer.place(data.init(key))

    def _claim(self, directory: Path) -> None:
        """Take the directory for this run alone; an existing run must be of the same configuration."""
        refusal = None
        if self.main:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                self.stack.enter_context(lock(directory))
                if (directory / "manifest.json").exists():
                    check_same(directory, self.about)
                    self.about = {**self.about, "seconds": read_manifest(directory).get("seconds", 0.0)}
                elif any(path.name != "lock" and not path.name.startswith(".") for path in directory.iterdir()):
                    raise ValueError(f"{directory} is not empty and holds no run: give another --run directory")
                with writing(directory):
                    write_manifest(directory, self.about)
            except (ValueError, OSError) as error:
                refusal = error
        # No process goes on where the first one could not take the directory.
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(refusal is not None)):
            refusal = refusal or ValueError(f"process 0 could not take {directory}: its own line says why")
        if refusal is not None:
            raise refusal

    def resume(self, step: int | None) -> None:
        """Go on from a checkpoint: the last one, or that of a step."""
        steps = self.checkpoints.steps() if self.checkpoints else []
        if step is not None and step not in steps:
            raise ValueError(f"no checkpoint of step {step} in {self.directory}: there are {steps or 'none'}")
        if not steps or self.checkpoints is None:
            return
        chosen = steps[-1] if step is None else step
        try:
            found = self.checkpoints.restore(chosen, self.original)
        except ValueError as error:
            earlier = [s for s in steps if s < chosen]
            remedy = f"run again with --resume-from {earlier[-1]}" if earlier else "none before it: give another --run"
            raise ValueError(f"{error}: {remedy}") from error
        self.checkpoints.supersede_after(chosen)
        self.state, self.reduction = found.state, found.reduction
        self.source = with_leaves(self.original, found.source)
        if found.resized:
            self.notes.append("the number of workers differs: their own memories of the reduction begin afresh")
        self.notes.append(f"going on from step {chosen}")

    def train(self, tensorboard: bool, stream: TextIO | None) -> Fitted:
        experiment, step = self.experiment, int(self.state.step)
        path = None if self.directory is None else self.directory / "metrics.jsonl"
        if path is not None and path.exists() and self.main:
            truncate_rows(path, step)
        self.rows = read_rows(path) if path is not None and path.exists() else []
        self.writers: list[Rows | Events] = []
        if path is not None and self.main:
            self.writers.append(self.stack.enter_context(Rows(path)))
            if tensorboard:
                self.writers.append(self.stack.enter_context(Events(path.parent, after=step)))
        self.bar = self.stack.enter_context(progress(experiment.steps, step, stream, quiet=not self.main))
        for note in self.notes:
            self.bar.line(note)
        stopping = self.stack.enter_context(on_sigterm())
        began, batches = time.perf_counter(), self._batches(step)
        self.clock, self.since = began, step
        counts = [count for _, count in optax.tree_utils.tree_get_all_with_path(self.reduction, SUSPICION[0])]
        self.suspicions = max((int(np.max(count.addressable_shards[0].data)) for count in counts), default=0)
        if self._evaluation_due(step) and not any(row["step"] == step and "split" in row for row in self.rows):
            self._evaluate(experiment.evaluate, step)
        while step < experiment.steps:
            if experiment.refresh_every and step % experiment.refresh_every == 0:
                self._refresh(step)
            fed = next(batches)
            self.state, self.reduction, metrics = self.trainer.step(self.state, self.reduction, self.source, fed)
            step += 1
            last = step == experiment.steps
            if step % experiment.log_every == 0 or last:
                self._log(step, metrics)
            due = experiment.checkpoint_every and step % experiment.checkpoint_every == 0
            stop = agree(stopping, step)
            if due or last or stop:
                self._save()
            if stop and not last:
                self._finish("stopped", began)
                self.bar.line(f"stopped at step {step}: the same command goes on")
                return Fitted(self.state, predictor(self.trainer, self.state), self.rows, None, False)
            # After the save: a run that is killed while it evaluates loses no step.
            if self._evaluation_due(step):
                self._evaluate(experiment.evaluate, step)
        self._wait()
        evaluated = self._evaluate(experiment.final or experiment.evaluate, step, final=True)
        self._keep(evaluated)
        self._finish("finished", began)
        return Fitted(self.state, predictor(self.trainer, self.state), self.rows, evaluated, True)

    def _evaluation_due(self, step: int) -> bool:
        every = self.experiment.evaluate_every
        return bool(every) and step % every == 0 and 0 < step < self.experiment.steps

    def _batches(self, step: int) -> Iterator[Any]:
        """What the host feeds to each step: nothing where the examples live on the device."""
        data, experiment = self.experiment.data, self.experiment
        if isinstance(data, Stream):
            processes = (jax.process_index(), jax.process_count())
            place = partial(jax.make_array_from_process_local_data, self.trainer.split)
            for batch in data.batches(experiment.seed, step, experiment.batch_size, *processes):
                yield jax.tree.map(lambda leaf: place(np.asarray(leaf)), batch)
        while True:
            yield ()

    def _refresh(self, step: int) -> None:
        data = self.experiment.data
        if isinstance(data, Stream):
            return
        key = jax.random.fold_in(self.keys.refresh, step)
        self.source = data.refresh(key, self.source, predictor(self.trainer, self.state))

    def _log(self, step: int, metrics: Mapping[str, Any]) -> None:
        row = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        self._check_finite(row["loss"])
        self._name_suspect({name: row.pop(name) for name in SUSPICION if name in row}, row)
        now = time.perf_counter()
        rate = (step - self.since) * self.experiment.batch_size / max(now - self.clock, 1e-9)
        self.clock, self.since = now, step
        self._write({"step": step, **row, "images_per_second": rate})
        self.bar.update(
            step,
            loss=row["loss"],
            clean=row.get("clean_accuracy"),
            robust=row.get("adversarial_accuracy"),
            images_per_second=rate,
        )

    def _name_suspect(self, found: dict[str, float], row: dict[str, Any]) -> None:
        """Say which worker stood out, where one did since the last row."""
        times, worker, step = (int(found.get(name, 0)) for name in SUSPICION)
        new, self.suspicions = times - self.suspicions, times
        if new > 0:
            row.update(found)
            steps = f"step {step + 1}" if new == 1 else f"{new} steps since the last row, at last in step {step + 1}"
            self.bar.line(f"worker {worker} stood out in {steps}")

    def _check_finite(self, loss: float = math.nan) -> None:
        failed = int(self.state.failed)
        if failed < 0:
            return
        steps = self.checkpoints.steps() if self.checkpoints else []
        last = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no earlier checkpoint"
        raise Diverged(f"the loss is {loss} and step {failed + 1} is not finite: lower the learning rate; {last}")

    def _evaluate(self, evaluation: Evaluation, step: int, *, final: bool = False) -> Evaluated | None:
        if self.test is None:
            return None
        began = time.perf_counter()
        found = evaluation(self.keys.evaluation, predictor(self.trainer, self.state), self.test)
        self._write({"step": step, "split": "test", **({"final": True} if final else {}), **found.metrics})
        told = (
            f"{name} {100 * value:.2f} %" if is_share(name, [value]) else f"{name} {value:.4g}"
            for name, value in found.metrics.items()
        )
        self.bar.line(f"step {step}: {', '.join(told)} of the test examples")
        self.clock += time.perf_counter() - began
        return found

    def _write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with writing(self.directory):
            for writer in self.writers:
                writer.write(row)

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        self._check_finite()
        with writing(self.directory):
            self.checkpoints.save(self.state, self.reduction, changed_leaves(self.source, self.original))

    def _wait(self) -> None:
        if self.checkpoints is not None:
            with writing(self.directory):
                self.checkpoints.wait()

    def _close(self, checkpoints: Checkpoints) -> None:
        with writing(self.directory):
            checkpoints.close()

    def _keep(self, evaluated: Evaluated | None) -> None:
        """Write what the final evaluation found beside the run's metrics."""
        if evaluated is None or self.directory is None or not self.main:
            return
        with writing(self.directory):
            if evaluated.curve:
                curve = {"radii": list(evaluated.curve), "accuracy": list(evaluated.curve.values())}
                (self.directory / "curve.json").write_text(json.dumps(curve) + "\n")
            if evaluated.gallery is not None:
                np.savez(self.directory / "gallery.npz", **evaluated.gallery._asdict())

    def _finish(self, status: str, began: float) -> None:
        self._wait()
        if self.directory is None or not self.main:
            return
        seconds = self.about.get("seconds", 0.0) + time.perf_counter() - began
        with writing(self.directory):
            write_manifest(self.directory, {**self.about, "status": status, "seconds": round(seconds, 1)})
            write_report(self.directory)
