import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data

IMAGES = np.arange(24, dtype=np.uint8).reshape(3, 2, 4, 1)
LABELS = np.array([0, 2, 1])


def all_of(source):
    batch = source.batch(source.init(jax.random.key(0)), 0, jnp.arange(source.size), source.size)
    return np.asarray(batch.inputs), np.asarray(batch.targets)


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "a.npz", image=IMAGES, label=LABELS)
    return tmp_path / "a.npz"


def test_a_file_is_its_arrays(path):
    found, expected = data.npz(path, shuffle=False), data.arrays(IMAGES, LABELS, shuffle=False)
    assert found.fingerprint == expected.fingerprint
    assert found.fingerprint != data.arrays(IMAGES[::-1], LABELS).fingerprint
    for a, b in zip(all_of(found), all_of(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_files_are_joined_in_order_and_names_can_be_given(path, tmp_path):
    np.savez_compressed(tmp_path / "b.npz", x=IMAGES[::-1] / 255, y=LABELS[::-1])
    np.savez(tmp_path / "c.npz", x=IMAGES[:1] / 255, y=LABELS[:1])
    source = data.npz([str(tmp_path / "b.npz"), tmp_path / "c.npz"], image="x", label="y", shuffle=False)
    images, labels = all_of(source)
    np.testing.assert_array_equal(labels, [1, 2, 0, 0])
    np.testing.assert_array_equal(images, (np.r_[IMAGES[::-1], IMAGES[:1]] / 255).astype(np.float32))


def refused(path, **names):
    with pytest.raises(ValueError, match=r"\S") as caught:
        data.npz(path, **names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_read_is_refused_in_one_line(path, tmp_path):
    absent = tmp_path / "absent.npz"
    assert refused(absent).startswith(f"no file {absent}")
    assert "has no array 'picture': it has image, label" in refused(path, image="picture")
    whole = path.read_bytes()
    for end in (10, 200, len(whole) - 5):
        cut = tmp_path / "cut.npz"
        cut.write_bytes(whole[:end])
        assert "cut.npz is no complete .npz file" in refused(cut)
    np.savez(tmp_path / "objects.npz", image=IMAGES, label=np.array([0, None, 1], object))
    assert "is a pickled array of objects" in refused(tmp_path / "objects.npz")
    np.save(tmp_path / "single.npy", IMAGES)
    assert "an array without a name" in refused(tmp_path / "single.npy")
    np.savez(tmp_path / "other.npz", image=IMAGES[:, :1], label=LABELS)
    assert "one dtype and shape, got uint8[1, 4, 1] and uint8[2, 4, 1]" in refused([path, tmp_path / "other.npz"])
    assert "at least one file" in refused([])
    assert "below the 2 classes, got 2" in refused(path, classes=2)


def test_a_changed_byte_inside_is_refused(path):
    whole = bytearray(path.read_bytes())
    whole[whole.index(IMAGES.tobytes()) + 3] ^= 1
    path.write_bytes(whole)
    assert "'image' of" in refused(path)


def test_two_numeric_dtypes_are_not_joined_silently(path, tmp_path):
    np.savez(tmp_path / "b.npz", image=(IMAGES / 255).astype(np.float32), label=LABELS)
    assert "got float32[2, 4, 1] and uint8[2, 4, 1]" in refused([path, tmp_path / "b.npz"])
