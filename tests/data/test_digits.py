import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxrobust import data


def held(source):
    state = source.init(jax.random.key(0))
    return np.asarray(state.images), np.asarray(state.labels)


def rows(images, labels):
    return sorted(zip(map(bytes, images), labels.tolist(), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tensorflow_datasets")


def test_they_are_scikit_learns_with_every_fifth_to_test(folder, capfd):
    splits = data.digits(data_dir=folder)
    assert capfd.readouterr() == ("", "")
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    assert (images * 16 == digits.images[..., None]).all()
    test = np.arange(1797) % 5 == 4
    assert rows(*held(splits.train)) == rows(images[~test], digits.target[~test])
    assert rows(*held(splits.test)) == rows(images[test], digits.target[test])
    assert rows(*held(splits.test)) != rows(images[np.roll(test, 1)], digits.target[np.roll(test, 1)])
    assert (splits.train.size, splits.test.size) == (1438, 359)


def test_training_is_shuffled_and_the_test_set_is_in_order(folder):
    train, test = data.digits(data_dir=folder)
    batch = test.batch(test.init(jax.random.key(0)), 1, jnp.arange(200), 200)
    assert batch.index[:159].tolist() == list(range(200, 359))
    assert float(batch.weight.sum()) == 159
    index = train.batch(train.init(jax.random.key(0)), 0, jnp.arange(200), 200).index
    assert index.tolist() != sorted(index.tolist())


SCRIPT = """
import sys
from jaxrobust import data
splits = data.digits()
print(splits.train.size, splits.train.fingerprint, splits.test.fingerprint)
assert "tensorflow" not in sys.modules
"""


@pytest.mark.slow
def test_four_processes_prepare_them_at_once_without_tensorflow(tmp_path, folder):
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path / "new"), "XLA_FLAGS": ""}
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    here = data.digits(data_dir=folder)
    expected = f"1438 {here.train.fingerprint} {here.test.fingerprint}\n"
    assert [out for out, _ in said] == [expected] * 4
    assert [path.name for path in (tmp_path / "new" / "digits").iterdir()] == ["1.0.0"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the digits cannot be written to .*file.*: set TFDS_DATA_DIR to a directory"):
        data.digits(data_dir=tmp_path / "file")
