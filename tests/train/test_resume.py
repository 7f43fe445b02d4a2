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
from jaxrobust.report import read_rows
from jaxrobust.train.checkpoint import Checkpoints
from jaxrobust.train.step import keys_of_run

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


def experiment(*, steps: int = 2000) -> train.Experiment:
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


STEPS = 2000


def rows_of(path):
    """Rows of a log that is being written; a torn last one is not there yet."""
    return read_rows(path) if path.exists() else []


def start(config, run):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-m", "jaxrobust.cli", "train", str(config), "--run", str(run)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def parameters(config, run):
    """Every leaf of the last checkpoint, as bytes."""
    experiment = train.configure(config, {}).build()
    trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1]))
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
    moments, run, killed_at = random.Random(0), tmp_path / "killed", []
    metrics = run / "metrics.jsonl"
    while len(killed_at) < 5:
        # A kill every 70 steps or so, at a random moment after the first row that this process added.
        since = max([row["step"] for row in rows_of(metrics)], default=0)
        process = start(config, run)
        while process.poll() is None and not any(row["step"] > since for row in rows_of(metrics)):
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.3))
        process.send_signal(kill)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == (-kill if kill == signal.SIGKILL else 0), out
        killed_at.append(max(row["step"] for row in rows_of(metrics)))
    assert all(0 < step < STEPS for step in killed_at), killed_at
    last = start(config, run)
    out, _ = last.communicate(timeout=300)
    assert last.returncode == 0, out
    expected, found = parameters(config, tmp_path / "whole"), parameters(config, run)
    assert expected == found
    rows = [json.loads(row) for row in metrics.read_text().splitlines()]
    steps = [row["step"] for row in rows if "split" not in row]
    assert steps == list(range(20, STEPS + 1, 20))


def test_the_comparison_sees_one_changed_bit(tmp_path):
    config = tmp_path / "resumed.py"
    config.write_text(CONFIG.replace("steps: int = 2000", "steps: int = 4"))
    train.fit(train.configure(config, {}).build(), tmp_path / "a", configuration=train.configure(config, {}))
    leaves = parameters(config, tmp_path / "a")
    name = next(iter(leaves))
    assert leaves != {**leaves, name: bytes([leaves[name][0] ^ 1]) + leaves[name][1:]}


@pytest.mark.parametrize("devices", [1, 4])
def test_saved_on_eight_devices_and_resumed_on_fewer(experiment, tmp_path, devices):
    """The shared state and the levels' count go on; what the workers had of their own begins afresh."""
    reduce = all_reduce("data", codec=codecs.qsgd(8, 64), rule=rules.median(), key=jax.random.key(0))
    experiment = replace(experiment, reduce=reduce, optimizer=optax.sgd(0.02, momentum=0.9))
    saved = train.fit(replace(experiment, steps=6), tmp_path / "run", devices=jax.devices())
    trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:devices]))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", trainer)
    found = checkpoints.restore(6, trainer.place(experiment.data.init(keys_of_run(0).data)))
    checkpoints.close()
    assert found.resized
    chex.assert_trees_all_equal(jax.device_get(found.state.params), jax.device_get(saved.state.params))
    chex.assert_trees_all_equal(jax.device_get(found.state.optimizer), jax.device_get(saved.state.optimizer))
    assert np.asarray(found.reduction.shared.count).tolist() == [6] * devices
    resumed = train.fit(experiment, tmp_path / "run", devices=jax.devices()[:devices])
    rows = [row for row in resumed.rows if "split" not in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    whole = train.fit(experiment, devices=jax.devices())
    went_on = [row["clean_accuracy"] for row in whole.rows if "split" not in row]
    # Other rounding and other workers' medians: near, while a fresh start (the control) is far.
    fresh = float(np.abs(went_on[0] - went_on[6]))
    assert abs(rows[6]["clean_accuracy"] - went_on[6]) < fresh / 2


def test_a_memory_of_columns_begins_afresh_on_another_number_of_devices(experiment, tmp_path):
    def clipping(workers):
        codec = codecs.error_feedback(codecs.sign(16))
        options = {"codec": codec, "rule": rules.centered_clipping(1.0), "workers": workers}
        return all_reduce("data", broadcast_codec=codec, key=jax.random.key(0), **options)

    experiment = replace(experiment, reduce=clipping(8), steps=6)
    train.fit(experiment, tmp_path / "run", devices=jax.devices())
    fewer = replace(experiment, reduce=clipping(2), steps=8)
    fitted = train.fit(fewer, tmp_path / "run", devices=jax.devices()[:2])
    assert [row["step"] for row in fitted.rows if "split" not in row] == list(range(1, 9))


def test_what_refresh_changed_is_restored(experiment, tmp_path):
    """Strata that the model chose at step 3 are in the checkpoint of step 4; without them the run would part."""
    images, labels = np.random.default_rng(0).random((64, 8, 8, 1), np.float32), np.arange(64) % 10
    plain = data.arrays(images, labels, classes=10, shuffle=False)
    source = sampling.stratified(plain, np.arange(64) % 2, 2, reassign=sampling.loss_quantiles(2))
    experiment = replace(experiment, data=source, refresh_every=3, checkpoint_every=4, steps=5)
    whole = train.fit(experiment, tmp_path / "whole")
    train.fit(replace(experiment, steps=4), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "4" / "source").is_dir()
    resumed = train.fit(experiment, tmp_path / "run")
    chex.assert_trees_all_equal(jax.device_get(whole.state.params), jax.device_get(resumed.state.params))
    lost = replace(experiment, refresh_every=0)
    train.fit(replace(lost, steps=4), tmp_path / "lost")
    control = train.fit(lost, tmp_path / "lost")
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(jax.device_get(whole.state.params), jax.device_get(control.state.params))


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
