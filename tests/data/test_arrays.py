import hashlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data
from jaxrobust.data.arrays import fingerprint_of

LABELS = np.arange(10) % 3
IMAGES = (np.arange(10 * 4, dtype=np.uint8) * 6).reshape(10, 2, 2, 1)


def drawn(source, steps, size, key=0):
    """Indices of the first steps, `[steps * size]`."""
    state = source.init(jax.random.key(key))
    rows = jnp.arange(size)
    return np.concatenate([source.batch(state, step, rows, size).index for step in range(steps)])


def once_an_epoch(index, length):
    epochs = index[: len(index) // length * length].reshape(-1, length)
    return all(sorted(epoch) == list(range(length)) for epoch in epochs)


def test_a_test_set_comes_in_order_and_ends_in_padding():
    source = data.arrays(IMAGES, LABELS, shuffle=False)
    batch = source.batch(source.init(jax.random.key(0)), 2, jnp.arange(4), 4)
    np.testing.assert_array_equal(batch.index, [8, 9, 9, 9])
    np.testing.assert_array_equal(batch.weight, [1, 1, 0, 0])
    np.testing.assert_array_equal(batch.targets, LABELS[[8, 9, 9, 9]])
    # A compiler may divide by 255 as it multiplies by 1/255, which costs one unit in the last place.
    np.testing.assert_array_max_ulp(np.asarray(batch.inputs), IMAGES[[8, 9, 9, 9]] / np.float32(255), 1)
    chex.assert_type(list(batch), [jnp.float32, jnp.int32, jnp.int32, jnp.float32])


def test_uint8_runs_from_exactly_0_to_exactly_1():
    every = np.arange(256, dtype=np.uint8)[:, None]
    source = data.arrays(every, np.zeros(256, int), shuffle=False)
    floats = source.batch(source.init(jax.random.key(0)), 0, jnp.arange(256), 256).inputs[:, 0]
    assert (float(floats[0]), float(floats[-1])) == (0.0, 1.0)
    assert (np.round(np.asarray(floats) * 255).astype(np.uint8) == every[:, 0]).all()


@pytest.mark.parametrize("size", [3, 10, 25])
def test_each_example_comes_once_an_epoch_whatever_the_batch(size):
    source = data.arrays(IMAGES, LABELS)
    index = drawn(source, -(-60 // size), size)
    assert once_an_epoch(index, 10)
    np.testing.assert_array_equal(index[:50], drawn(source, 50, 1))


def test_the_epoch_check_sees_draws_with_replacement():
    assert not once_an_epoch(np.random.default_rng(0).integers(0, 10, 60), 10)


def test_each_epoch_and_each_key_has_its_own_order():
    source = data.arrays(IMAGES, LABELS)
    epochs = drawn(source, 20, 10).reshape(20, 10)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert tuple(drawn(source, 1, 10, key=1)) not in {tuple(epoch) for epoch in epochs}


def test_inputs_and_targets_are_those_of_the_index():
    source = data.arrays(IMAGES, LABELS)
    batch = source.batch(source.init(jax.random.key(4)), 3, jnp.arange(8), 8)
    np.testing.assert_array_max_ulp(np.asarray(batch.inputs), IMAGES[batch.index] / np.float32(255), 1)
    np.testing.assert_array_equal(batch.targets, LABELS[batch.index])
    np.testing.assert_array_equal(batch.weight, np.ones(8))


def test_the_rows_of_devices_make_the_whole_batch():
    source = data.arrays(IMAGES, LABELS)
    state = source.init(jax.random.key(0))
    whole = source.batch(state, 5, jnp.arange(8), 8)
    parts = [source.batch(state, 5, rows, 8) for rows in (jnp.arange(4), jnp.arange(4, 8))]
    chex.assert_trees_all_equal(whole, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))
    mistaken = [source.batch(state, 5, jnp.arange(4), 4)] * 2
    assert not np.array_equal(whole.index, np.concatenate([part.index for part in mistaken]))


def test_jitted_with_a_traced_step_it_is_traced_once():
    source = data.arrays(IMAGES, LABELS)
    state, rows = source.init(jax.random.key(0)), jnp.arange(4)
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(lambda step: source.batch(state, step, rows, 4), n=1))
    for step in (0, 1, 7):
        chex.assert_trees_all_equal(jitted(jnp.int32(step)), source.batch(state, step, rows, 4))


@pytest.mark.parametrize("kind", [np.uint8, np.float16, jnp.bfloat16, np.float32])
def test_images_keep_their_dtype_on_the_device_and_are_float32_in_a_batch(kind):
    images = (IMAGES > 100).astype(kind)
    source = data.arrays(images, LABELS.astype(np.uint8))
    with jax.numpy_dtype_promotion("strict"):
        state = source.init(jax.random.key(0))
        batch = source.batch(state, jnp.int32(0), jnp.arange(10), 10)
    assert state.images.dtype == kind
    chex.assert_type([batch.inputs, batch.targets], [jnp.float32, jnp.int32])
    assert float(batch.inputs.max()) == (np.float32(1) / np.float32(255) if kind == np.uint8 else 1.0)


def test_no_example_is_a_constant_of_the_step():
    images = np.zeros((1000, 4), np.float32)
    source = data.arrays(images, np.zeros(1000, int))
    state = jax.eval_shape(source.init, jax.random.key(0))
    made = jax.make_jaxpr(lambda s, t: source.batch(s, t, jnp.arange(4), 4))(state, 0)
    assert sum(np.size(constant) for constant in made.consts) < 1000
    captured = source.init(jax.random.key(0))
    mistaken = jax.make_jaxpr(lambda t: source.batch(captured, t, jnp.arange(4), 4))(0)
    assert sum(np.size(constant) for constant in mistaken.consts) >= 1000


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (
            IMAGES.astype(np.float32),
            LABELS,
            r"images must lie in \[0, 1\], got a maximum of 234.0: divide by 255, or pass",
        ),
        (IMAGES / 255 - 0.5, LABELS, r"images must lie in \[0, 1\], got a minimum of -0.5"),
        (np.full((10, 4), np.nan), LABELS, r"images must lie in \[0, 1\], got nan"),
        (IMAGES.astype(np.int64), LABELS, "images must be uint8 or floating point, got int64"),
        (IMAGES[..., 0], LABELS, r"images must be .* got shape \(10, 2, 2\)"),
        (IMAGES[:0], LABELS[:0], "images must hold at least one example"),
        (IMAGES, LABELS[:-1], "got 10 images and 9 labels"),
        (IMAGES, LABELS - 1, "labels must not be negative, got -1"),
        (IMAGES, LABELS + 1, "labels must lie below the 3 classes, got 3"),
        (IMAGES, LABELS.astype(float), "labels must be integers, got float64"),
        (IMAGES, np.eye(10, dtype=int), "labels must be .* not one-hot rows"),
    ],
)
def test_bad_examples_are_refused(images, labels, said):
    with pytest.raises(ValueError, match=said):
        data.arrays(images, labels, classes=3)


def test_the_fingerprint_is_of_bytes_shapes_and_dtypes():
    base = data.arrays(IMAGES, LABELS).fingerprint
    assert base == data.arrays(IMAGES.copy(), LABELS.astype(np.uint8), shuffle=False).fingerprint
    others = [
        data.arrays(IMAGES[::-1], LABELS),
        data.arrays(IMAGES, LABELS[::-1]),
        data.arrays(IMAGES.reshape(10, 1, 4, 1), LABELS),
        data.arrays((IMAGES / 255).astype(np.float32), LABELS),
    ]
    assert len({base, *(each.fingerprint for each in others)}) == 5
    by_hand = hashlib.sha256(b"|u1(2,)" + bytes([3, 4])).hexdigest()
    assert fingerprint_of(np.array([3, 4], np.uint8)) == by_hand
    assert fingerprint_of("ab", "c") != fingerprint_of("a", "bc")
