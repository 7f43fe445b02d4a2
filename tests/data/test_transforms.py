import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data

IMAGE = jnp.arange(1.0, 13.0).reshape(3, 4, 1) / 12


def windows(padding):
    """Every crop of the image, by hand."""
    padded = np.pad(IMAGE, ((padding, padding), (padding, padding), (0, 0)))
    return [padded[i : i + 3, j : j + 4] for i in range(2 * padding + 1) for j in range(2 * padding + 1)]


def too_far(counts, expected):
    freedom = counts.size - 1
    return abs(np.sum((counts - expected) ** 2 / expected) - freedom) > 4 * np.sqrt(2 * freedom)


def which(found, candidates):
    """Position of each found image among the candidates; each must be exactly one of them."""
    same = (found[:, None] == np.stack(candidates)[None]).all((2, 3, 4))
    assert (same.sum(1) == 1).all()
    return same.argmax(1)


@pytest.mark.parametrize("padding", [1, 2])
def test_crops_are_all_windows_equally_often(padding):
    count = 4000
    keys = jax.random.split(jax.random.key(0), count)
    found = np.asarray(jax.jit(jax.vmap(data.crop(padding), (0, None)))(keys, IMAGE))
    candidates = windows(padding)
    counts = np.bincount(which(found, candidates), minlength=len(candidates))
    assert not too_far(counts, count / len(candidates))
    # An offset that never reaches its last value is the usual mistake.
    assert too_far(np.r_[counts[1:], 0] + counts[0] * (np.arange(len(counts)) == 0), count / len(candidates))


def test_flips_are_half_of_them_and_only_left_and_right():
    count = 4000
    keys = jax.random.split(jax.random.key(1), count)
    found = np.asarray(jax.vmap(data.flip(), (0, None))(keys, IMAGE))
    flipped = which(found, [IMAGE, IMAGE[:, ::-1]]).mean()
    assert abs(flipped - 0.5) < 4 * 0.5 / np.sqrt(count)
    with pytest.raises(AssertionError):
        which(found, [IMAGE, IMAGE[::-1]])


@pytest.fixture
def source():
    images = np.random.default_rng(0).random((40, 5, 7, 2), np.float32)
    return data.arrays(images, np.arange(40) % 4)


def test_only_the_images_change(source):
    changed = data.transformed(source, data.crop(1), data.flip())
    state = changed.init(jax.random.key(0))
    a = jax.jit(changed.batch, static_argnums=3)(state, 3, jnp.arange(8), 8)
    b = source.batch(state.source, 3, jnp.arange(8), 8)
    for name in ("targets", "index", "weight"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.inputs.shape == b.inputs.shape
    assert a.inputs.dtype == jnp.float32
    assert not np.array_equal(a.inputs, b.inputs)
    assert (changed.size, changed.fingerprint) == (source.size, source.fingerprint)


def split_alike(changed):
    """Whether two halves of a batch are the whole, drawn each on its own."""
    state, batch = changed.init(jax.random.key(0)), jax.jit(changed.batch, static_argnums=3)
    whole = batch(state, 2, jnp.arange(8), 8).inputs
    parts = [batch(state, 2, rows, 8).inputs for rows in (jnp.arange(4), jnp.arange(4, 8))]
    return np.array_equal(whole, np.concatenate(parts))


def test_an_example_is_changed_alike_on_any_number_of_devices(source):
    noise = data.transformed(source, lambda key, image: image + jax.random.uniform(key))
    assert split_alike(noise)

    def by_row(state, step, rows, size):
        batch = source.batch(state, step, rows, size)
        return batch._replace(inputs=batch.inputs + jax.random.uniform(state.key, (len(rows), 1, 1, 1)))

    assert not split_alike(source._replace(batch=by_row))


def test_changes_differ_between_steps_examples_and_transforms(source):
    def draw(key, image):
        return image * 0 + jax.random.uniform(key)

    ordered = data.arrays(np.zeros((4, 2), np.float32), np.arange(4), shuffle=False)
    both = data.transformed(ordered, draw, lambda key, image: image.at[1].set(jax.random.uniform(key)))
    state = both.init(jax.random.key(0))
    batch = jax.jit(both.batch, static_argnums=3)
    found = [batch(state, step, jnp.arange(4), 4).inputs.ravel() for step in range(3)]
    # Numbers past the end are the last example again, so only the steps' own keys make steps 1 and 2 differ.
    assert len(set(np.concatenate([found[0], found[1][:2], found[2][:2]]).tolist())) == 12


def test_transforms_are_applied_in_order():
    ordered = data.arrays(np.full((1, 2), 0.5, np.float32), np.array([0]))
    changed = data.transformed(ordered, lambda key, x: x + 1, lambda key, x: x * 10)
    assert changed.batch(changed.init(jax.random.key(0)), 0, jnp.arange(1), 1).inputs.tolist() == [[15.0, 15.0]]


def test_refresh_reaches_the_source(source):
    counted = source._replace(refresh=lambda key, state, predict: state._replace(labels=predict(state.labels)))
    changed = data.transformed(counted, data.flip())
    state = changed.refresh(jax.random.key(1), changed.init(jax.random.key(0)), lambda labels: labels + 1)
    np.testing.assert_array_equal(state.source.labels, np.arange(40) % 4 + 1)


def test_a_stream_is_transformed_in_finish():
    images = [np.full((2, 2, 1), 51 * i, np.uint8) for i in range(4)]
    plain = data.stream([(image, i) for i, image in enumerate(images)])
    changed = data.transformed(plain, lambda key, image: image + jax.random.uniform(key))
    keys = jax.random.split(jax.random.key(0), 4)
    moved = changed.finish(keys, jnp.stack(images)) - plain.finish(keys, jnp.stack(images))
    assert len(set(moved[:, 0, 0, 0].tolist())) == 4
    np.testing.assert_allclose(moved, jnp.broadcast_to(moved[:, :1, :1], moved.shape), rtol=0, atol=2**-22)
    assert changed.fingerprint == plain.fingerprint


def test_bad_arguments_are_refused(source):
    with pytest.raises(ValueError, match="padding must be positive, got 0"):
        data.crop(0)
    with pytest.raises(ValueError, match="at least one, got none"):
        data.transformed(source)
    for transform in (data.crop(1), data.flip()):
        with pytest.raises(ValueError, match=r"takes images .* got an example of shape \(4,\)"):
            transform(jax.random.key(0), jnp.zeros(4))
