import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([3, 1], np.uint8)


def written(array, kind=8):
    return bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def files(tmp_path):
    paths = tmp_path / "images", tmp_path / "labels"
    for path, array in zip(paths, (IMAGES, LABELS), strict=True):
        path.write_bytes(written(array))
    return paths


def test_images_and_labels_come_as_written(files):
    source = data.idx(*files, shuffle=False)
    assert source.fingerprint == data.arrays(IMAGES[..., None], LABELS).fingerprint
    assert source.fingerprint != data.arrays(IMAGES.reshape(2, 4, 3, 1), LABELS).fingerprint
    batch = source.batch(source.init(jax.random.key(0)), 0, jnp.arange(2), 2)
    assert batch.inputs.shape == (2, 3, 4, 1)
    assert batch.targets.tolist() == [3, 1]


def test_gzipped_files_are_the_same(files):
    plain = data.idx(*files)
    for path in files:
        path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    assert data.idx(*files).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must begin with 00000803 .*, got nothing"),
        (written(LABELS), r"must begin with 00000803 \(idx of uint8, 3 axes\), got 00000801"),
        (written(IMAGES, kind=13), "got 00000d03"),
        (written(IMAGES)[:-1], r"must have 40 bytes for shape \(2, 3, 4\), got 39"),
        (written(IMAGES) + b"\0", "got 41"),
        (written(IMAGES)[:6], "must have"),
        (gzip.compress(written(IMAGES), mtime=0)[:-6], "cannot be decompressed"),
        (gzip.compress(written(IMAGES), mtime=0)[:-8] + bytes(8), "cannot be decompressed"),
        (written(IMAGES[:1]), "got 1 images and 2 labels"),
    ],
)
def test_broken_files_are_refused(files, content, said):
    files[0].write_bytes(content)
    with pytest.raises(ValueError, match=said):
        data.idx(*files)


def test_absent_files_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*absent"):
        data.idx(files[0], tmp_path / "absent")


def test_mnist(shared):
    folder = shared / "data" / "mnist"
    source = data.idx(folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz", shuffle=False)
    batch = source.batch(source.init(jax.random.key(0)), 0, jnp.arange(10_000), 10_000)
    assert batch.inputs.shape == (10_000, 28, 28, 1)
    assert batch.targets[:5].tolist() == [7, 2, 1, 0, 4]
    # Published: mean 0.1325 and standard deviation 0.3105 of the test images' pixels.
    assert abs(float(batch.inputs.mean()) - 0.1325) < 5e-5
    assert abs(float(batch.inputs.std()) - 0.3105) < 5e-5
