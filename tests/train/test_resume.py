"""A run killed at any moment and started again ends as if it had not been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest

from jaxrobust import data, sampling, train
from jaxrobust.aggregation import all_reduce, codecs, rules

CONFIG = '''
"""Batch norm, momentum, an average and a learned augmentation: everything that a checkpoint has to hold."""
import flax.linen as nn
import optax
from jaxrobust import augment, data, geometry, models, objectives, train


class Net(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(32)(x.reshape(len(x), -1))
        return nn.Dense(10)(nn.relu(nn.BatchNorm(not train, axis_name=self.axis_name)(x)))


def experiment(*, steps: int = 400) -> train.Experiment:
    """A run of some seconds."""
    digits = data.digits()
    return train.Experiment(
        model=models.linen(Net()),
        data=digits.train,
        test=digits.test,
        augment=augment.noise_range(30.0),
        objective=objectives.trades(geometry.linf(), 0.1, steps=5, step_size=0.03),
        optimizer=optax.adam(1e-3),
        average=train.moving_average(0.9),
        steps=steps,
        log_every=20,
        evaluate_every=100,
        checkpoint_every=25,
    )
'''


def start(config, run):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-m", "jaxrobust.cli", "train", str(config), "--run", str(run)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def parameters(config, run):
    """Every leaf of the last checkpoint, as bytes."""
    experiment = train.configure(config, {}).build()
    trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1]))
    from jaxrobust.train.checkpoint import Checkpoints

    checkpoints = Checkpoints(run / "checkpoints", trainer)
    state = checkpoints.restore_state(checkpoints.steps()[-1])
    checkpoints.close()
    state = state._replace(key=jax.random.key_data(state.key))
    return {jax.tree_util.keystr(p): np.asarray(x).tobytes() for p, x in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_killed_five_times_ends_bit_identical(tmp_path, kill):
    config = tmp_path / "resumed.py"
    config.write_text(CONFIG)
    whole = start(config, tmp_path / "whole")
    out, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, out
    moments, run, kills = random.Random(0), tmp_path / "killed", 0
    metrics = run / "metrics.jsonl"
    while kills < 5:
        seen = metrics.stat().st_size if metrics.exists() else 0
        process = start(config, run)
        # The moment counts from the first row that this process writes, so that a slow start is no reprieve.
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= min(seen, 1)):
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 2.0))
        process.send_signal(kill)
        out, _ = process.communicate(timeout=60)
        assert process.returncode in ((-kill,) if kill == signal.SIGKILL else (0,)) or process.returncode == 0, out
        kills += 1
    last = start(config, run)
    out, _ = last.communicate(timeout=300)
    assert last.returncode == 0, out
    expected, found = parameters(config, tmp_path / "whole"), parameters(config, run)
    assert expected == found
    rows = [json.loads(row) for row in metrics.read_text().splitlines()]
    steps = [row["step"] for row in rows if "split" not in row]
    assert steps == list(range(20, 401, 20))


def test_the_comparison_sees_one_changed_bit(tmp_path):
    config = tmp_path / "resumed.py"
    config.write_text(CONFIG.replace("steps: int = 400", "steps: int = 4"))
    train.fit(train.configure(config, {}).build(), tmp_path / "a", configuration=train.configure(config, {}))
    leaves = parameters(config, tmp_path / "a")
    name = next(iter(leaves))
    assert leaves != {**leaves, name: bytes([leaves[name][0] ^ 1]) + leaves[name][1:]}


@pytest.mark.parametrize("devices", [1, 4])
def test_saved_on_eight_devices_and_resumed_on_fewer(experiment, tmp_path, devices):
    experiment = replace(experiment, reduce=all_reduce("data", codec=codecs.qsgd(4, 64), rule=rules.median()))
    run, whole = tmp_path / "run", tmp_path / "whole"
    train.fit(replace(experiment, steps=6), run, devices=jax.devices())
    began = (run / "checkpoints" / "6").exists()
    assert began
    # The schedule is no part of what identifies a run without a configuration, so that it can be made longer.
    fitted = train.fit(experiment, run, devices=jax.devices()[:devices])
    assert int(fitted.state.step) == 12
    assert [row["step"] for row in fitted.rows if "split" not in row] == list(range(1, 13))
    continued = train.fit(experiment, whole, devices=jax.devices())
    first = [row["loss"] for row in continued.rows if "split" not in row]
    np.testing.assert_allclose([row["loss"] for row in fitted.rows if "split" not in row][:6], first[:6], rtol=1e-5)


def test_what_refresh_changed_is_restored(experiment, digits, tmp_path):
    images, labels = np.random.default_rng(0).random((64, 8, 8, 1), np.float32), np.arange(64) % 10
    plain = data.arrays(images, labels, classes=10, shuffle=False)
    calls = []

    def reassign(key, state, predict):
        calls.append(1)
        return state._replace(assignment=(state.assignment + 1) % 2) if hasattr(state, "assignment") else state

    source = sampling.stratified(plain, np.arange(64) % 2, 2)
    refreshed = source._replace(refresh=reassign) if not hasattr(source, "reassign") else source
    experiment = replace(experiment, data=refreshed, refresh_every=3, checkpoint_every=4, steps=8)
    whole = train.fit(experiment, tmp_path / "whole")
    train.fit(replace(experiment, steps=4), tmp_path / "run")
    resumed = train.fit(experiment, tmp_path / "run")
    assert calls
    chex.assert_trees_all_equal(whole.state.params, resumed.state.params)


def test_a_checkpoint_holds_no_examples(experiment, tmp_path):
    train.fit(experiment, tmp_path / "run")
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file())
    examples = experiment.data.size * 64 * 4
    assert size < examples


def test_metrics_and_files_of_a_run(experiment, tmp_path):
    fitted = train.fit(replace(experiment, evaluate_every=4, optimizer=optax.sgd(0.05)), tmp_path / "run")
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == fitted.rows
    assert [row["step"] for row in rows if row.get("split") == "test"] == [4, 8, 12]
    assert rows[-1]["final"] is True
    logits = fitted.predict(np.zeros((2, 8, 8, 1), np.float32))
    assert logits.shape == (2, 10)


def test_fit_without_a_directory_writes_nothing(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.fit(experiment).finished
    assert list(Path(tmp_path).iterdir()) == []
