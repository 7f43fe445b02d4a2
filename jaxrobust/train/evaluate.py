"""Evaluate a run again, from its checkpoint and a configuration that the user has.

Nothing that came with a run is executed: the network is rebuilt from a configuration file named by the user, or kept
under `configs/` in the working directory, and only if its hash is the one that the run recorded.
"""

from dataclasses import replace
from pathlib import Path

import jax

from jaxrobust.train.checkpoint import Checkpoints
from jaxrobust.train.configuration import Configuration, configure
from jaxrobust.train.fit import predictor, sharded
from jaxrobust.train.manifest import read_manifest
from jaxrobust.train.step import keys_of_run, prepare_training
from jaxrobust.typing import Evaluated, Evaluation


def configuration_of(run: Path, file: Path | None = None) -> Configuration:
    """The configuration that a run was trained with, from the user's own file.

    Args:
      run: directory of the run.
      file: the configuration file; `configs/NAME` in the working directory by default.

    Returns:
      The configuration with the run's arguments.

    Raises:
      ValueError: if the file is absent, lies inside the run, or is not the one that the run recorded.
    """
    recorded = read_manifest(run).get("configuration")
    if recorded is None:
        raise ValueError(f"{run} was not trained from a configuration file: evaluate it from Python")
    path = Path("configs") / Path(recorded["name"]).name if file is None else file
    if not path.is_file():
        raise ValueError(f"no configuration {path}: name the file that trained {run} with --config FILE")
    if path.resolve().is_relative_to(run.resolve()):
        raise ValueError(
            f"{path} came with the run, and nothing of a run is executed: name your own with --config FILE"
        )
    return configure(path, recorded["arguments"], recorded["sha256"])


def evaluate_run(
    run: Path, file: Path | None = None, step: int | None = None, evaluation: Evaluation | None = None
) -> tuple[Evaluated, int]:
    """Run an evaluation on a run's checkpoint and its configuration's test examples.

    Args:
      run: directory of the run.
      file: the configuration file; `configs/NAME` in the working directory by default.
      step: which checkpoint; the last one by default.
      evaluation: what to run; the configuration's final evaluation by default.

    Returns:
      What the evaluation found, and the checkpoint's step.

    Raises:
      ValueError: as `configuration_of`, and if there is no such checkpoint or it cannot be read.
    """
    experiment = configuration_of(run, file).build()
    if experiment.test is None:
        raise ValueError(f"the configuration of {run} has no test examples to evaluate on")
    # What trained it, and on how many devices, an evaluation does not need.
    trainer = prepare_training(
        replace(
            experiment,
            reduce=None,
            workers_per_device=1,
            devices_per_worker=1,
            accumulation=1,
            batch_size=jax.device_count(),
        )
    )
    if not (run / "checkpoints").is_dir():
        raise ValueError(f"no checkpoint in {run}: train it first")
    checkpoints = Checkpoints(run / "checkpoints", trainer, read_only=True)
    try:
        steps = checkpoints.steps()
        if not steps or (step is not None and step not in steps):
            raise ValueError(f"no checkpoint {'' if step is None else step} in {run}: there are {steps or 'none'}")
        chosen = steps[-1] if step is None else step
        state = checkpoints.restore_state(chosen)
    finally:
        checkpoints.close()
    evaluation = evaluation or experiment.final or experiment.evaluate
    return evaluation(
        keys_of_run(experiment.seed).evaluation, predictor(trainer, state), sharded(experiment.test, trainer)
    ), chosen
