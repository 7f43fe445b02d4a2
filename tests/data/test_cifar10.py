import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data
from jaxrobust.data.cifar10 import restored

RANDOM = np.random.default_rng(0)
TRAIN = RANDOM.integers(0, 256, (6, 32, 32, 3), np.uint8), np.array([0, 9, 3, 4, 4, 1])
TEST = RANDOM.integers(0, 256, (2, 32, 32, 3), np.uint8), np.array([5, 6])


def write_binary(path, images, labels):
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    path.write_bytes(np.concatenate([labels.astype(np.uint8)[:, None], planes], 1).tobytes())


def write_images(path, images, labels):
    np.savez(path, image=images, label=labels)


def write_differences(path, images, labels):
    planes = images.transpose(0, 3, 1, 2).copy()
    planes[:, ::2] -= planes[:, 1:2]
    for axis in (3, 2):
        planes = np.diff(planes, axis=axis, prepend=np.uint8(0)).astype(np.uint8)
    np.savez(path, d2=planes, label=labels, exact=np.ones(len(labels), bool))


FORMS = {
    "binary": (write_binary, "data_batch_{}.bin", "test_batch.bin"),
    "images": (write_images, "train-{}.npz", "test.npz"),
    "differences": (write_differences, "train-{}.npz", "test.npz"),
}


def write(folder, form):
    writer, train, test = FORMS[form]
    folder.mkdir(exist_ok=True)
    writer(folder / train.format(1), TRAIN[0][:4], TRAIN[1][:4])
    writer(folder / train.format(2), TRAIN[0][4:], TRAIN[1][4:])
    writer(folder / test, *TEST)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_examples(tmp_path, form):
    splits = data.cifar10(write(tmp_path, form))
    assert splits.train.fingerprint == data.arrays(*TRAIN).fingerprint
    assert splits.test.fingerprint == data.arrays(*TEST).fingerprint
    transposed = TRAIN[0].transpose(0, 2, 1, 3)
    assert splits.train.fingerprint != data.arrays(transposed, TRAIN[1]).fingerprint
    last = splits.test.batch(splits.test.init(jax.random.key(0)), 0, jnp.arange(4), 4)
    assert last.index.tolist() == [0, 1, 1, 1]
    assert last.weight.tolist() == [1, 1, 0, 0]


def test_the_folder_of_the_archive_is_found(tmp_path):
    write(tmp_path / "cifar-10-batches-bin", "binary")
    assert data.cifar10(str(tmp_path)).train.size == 6


def test_differences_by_hand():
    # Green is 1, 3 above 5, 0; red is 10 above green, blue equal to it.
    green = np.array([[1, 3], [5, 0]], np.uint8)
    steps = np.array([[1, 2], [4, 249]], np.uint8)
    constant = np.array([[10, 0], [0, 0]], np.uint8)
    found = restored(np.stack([constant, steps, constant * 0])[None])
    np.testing.assert_array_equal(found[0], np.stack([green + 10, green, green], -1))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "test_batch.bin").unlink(), "no file .*test_batch.bin"),
        (lambda folder: (folder / "data_batch_2.bin").write_bytes(bytes(3000)), "3073-byte records, got 3000 bytes"),
        (lambda folder: (folder / "data_batch_2.bin").write_bytes(b""), "3073-byte records, got 0 bytes"),
        (lambda folder: (folder / "test_batch.bin").write_bytes(b"\x0a" * 3073), "below the 10 classes, got 10"),
    ],
)
def test_broken_binary_files_are_refused(tmp_path, spoil, said):
    spoil(write(tmp_path, "binary"))
    with pytest.raises(ValueError, match=said):
        data.cifar10(tmp_path)


def test_broken_npz_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no CIFAR-10 in .* it needs data_batch_1.bin"):
        data.cifar10(tmp_path)
    write(tmp_path, "images")
    np.savez(tmp_path / "test.npz", label=TEST[1])
    with pytest.raises(ValueError, match=r"test.npz has neither image nor d2"):
        data.cifar10(tmp_path)
    np.savez(tmp_path / "test.npz", label=TEST[1], d2=TEST[0])
    with pytest.raises(
        ValueError, match=r"d2 must be uint8 \[N, 3, height, width\], got uint8 of shape \(2, 32, 32, 3\)"
    ):
        data.cifar10(tmp_path)


@pytest.mark.slow
def test_the_whole_set(shared):
    splits = data.cifar10(shared / "data" / "cifar10")
    assert (splits.train.size, splits.test.size) == (50_000, 10_000)
    state = splits.train.init(jax.random.key(0))
    images = np.asarray(state.images)
    counts = np.bincount(np.asarray(state.labels))
    np.testing.assert_array_equal(counts, np.full(10, 5000))
    mean = images.mean((0, 1, 2), dtype=np.float64) / 255
    # Published to five places.
    np.testing.assert_allclose(mean, (0.49140, 0.48216, 0.44653), rtol=0, atol=5e-6)
    assert not np.allclose(mean[::-1], (0.49140, 0.48216, 0.44653), rtol=0, atol=5e-6)
