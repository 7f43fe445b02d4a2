"""Every configuration builds, and its training step is a program: shapes alone, on small blank images."""

import gzip
import struct
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrobust import train

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
SMALL = {
    "cifar10_black_box_defense": {
        "classifier_steps": 1,
        "depth": 3,
        "features": 2,
        "components": 3,
        "batch_size": 8,
    },
    "cifar10_deepzero_resnet20": {"scores": "none"},
    "cifar10_wide_resnet": {"depth": 10, "width": 1, "batch_size": 32},
    "pod_quantized_mixtailor": {"depth": 10, "width": 1, "devices_per_worker": 1, "batch_size": 32, "faulty": 1},
    # A device for each worker, or for each two.
    "cifar10_quantized": {"workers": 8},
    "mnist_mixtailor": {"workers": 16},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Blank images in the files of CIFAR-10 and of MNIST."""
    directory = tmp_path_factory.mktemp("blank")
    for split, count in (("train", 512), ("test", 32)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        np.savez(directory / f"{split}.npz", image=np.zeros((count, 32, 32, 3), np.uint8), label=labels)
        name = "train" if split == "train" else "t10k"
        for kind, array in (("images-idx3", np.zeros((count, 28, 28), np.uint8)), ("labels-idx1", labels)):
            head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
            with gzip.open(directory / f"{name}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + array.tobytes())
    return directory


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_builds_and_its_step_is_a_program(path, folder):
    flags = SMALL.get(path.stem, {})
    if "data_dir" in path.read_text():
        flags = {**flags, "data_dir": str(folder)}
    experiment = train.configure(path, flags).build()
    mesh = train.make_mesh(jax.devices(), experiment.devices_per_worker)
    trainer = train.prepare_training(experiment, mesh)
    state, reduction = jax.eval_shape(trainer.init)
    source = jax.eval_shape(experiment.data.init, jax.random.key(0))
    after, _, metrics = jax.eval_shape(trainer.step, state, reduction, source, ())
    assert jax.tree.map(lambda leaf: leaf.shape, after.params) == jax.tree.map(lambda leaf: leaf.shape, state.params)
    assert "loss" in metrics
