import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data


@pytest.fixture
def real():
    return data.arrays(np.zeros((40, 3), np.float32), np.zeros(40, int))


@pytest.fixture
def synthetic():
    return data.arrays(np.ones((50, 3), np.float32), np.ones(50, int))


def batches(source, steps, size):
    state, batch = source.init(jax.random.key(0)), jax.jit(source.batch, static_argnums=3)
    return [batch(state, step, jnp.arange(size), size) for step in range(steps)]


@pytest.mark.parametrize(("fraction", "generated"), [(0.0, 0), (0.3, 2), (0.7, 6), (1.0, 8)])
def test_the_share_is_exact_and_real_rows_stand_first(real, synthetic, fraction, generated):
    source = data.mixture(real, synthetic, fraction)
    for batch in batches(source, 3, 8):
        expected = np.arange(8) >= 8 - generated
        np.testing.assert_array_equal(batch.targets, expected)
        np.testing.assert_array_equal(batch.inputs, np.repeat(expected[:, None], 3, 1))
        np.testing.assert_array_equal(batch.index >= real.size, expected)
        np.testing.assert_array_equal(batch.weight, np.ones(8))
    assert source.size == real.size


def test_both_are_drawn_in_whole_epochs(real, synthetic):
    index = np.stack([batch.index for batch in batches(data.mixture(real, synthetic, 0.625), 20, 16)])
    first, second = index[:, :6].ravel(), index[:, 6:].ravel() - 40
    assert all(sorted(epoch) == list(range(40)) for epoch in first.reshape(-1, 40))
    assert all(sorted(epoch) == list(range(50)) for epoch in second.reshape(-1, 50))
    # Rows of a whole batch, cut after drawing, would skip examples.
    skipping = np.stack([batch.index[:6] for batch in batches(real, 20, 16)]).ravel()
    assert not all(sorted(epoch) == list(range(40)) for epoch in skipping.reshape(-1, 40))


def test_the_rows_of_devices_make_the_whole_batch(real, synthetic):
    source = data.mixture(real, synthetic, 0.75)
    state = source.init(jax.random.key(0))
    whole = source.batch(state, 5, jnp.arange(8), 8)
    parts = [source.batch(state, 5, rows, 8) for rows in (jnp.arange(4), jnp.arange(4, 8))]
    chex.assert_trees_all_equal(whole, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))
    swapped = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts[::-1])
    assert not np.array_equal(whole.index, swapped.index)


def test_jitted_with_traced_rows_it_is_traced_once(real, synthetic):
    source = data.mixture(real, synthetic, 0.75)
    state = source.init(jax.random.key(0))
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(lambda step, rows: source.batch(state, step, rows, 8), n=1))
    with jax.numpy_dtype_promotion("strict"):
        for step in range(3):
            found = jitted(jnp.int32(step), jnp.arange(4, 8))
            chex.assert_trees_all_equal(found, source.batch(state, step, jnp.arange(4, 8), 8))


def test_both_are_refreshed(real, synthetic):
    def refresh(key, state, predict):
        return state._replace(labels=predict(state.labels))

    source = data.mixture(real._replace(refresh=refresh), synthetic._replace(refresh=refresh), 0.5)
    state = source.refresh(jax.random.key(1), source.init(jax.random.key(0)), lambda labels: labels + 1)
    assert (int(state.real.labels[0]), int(state.synthetic.labels[0])) == (1, 2)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(real, synthetic, fraction):
    with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\], got"):
        data.mixture(real, synthetic, fraction)


def test_examples_of_two_shapes_are_refused(real):
    other = data.arrays(np.zeros((4, 5), np.float32), np.zeros(4, int))
    with pytest.raises(ValueError, match=r"must be alike, got float32\[3\], int32\[\] and float32\[5\]"):
        data.mixture(real, other, 0.5)


def test_the_fingerprint_is_of_both_and_of_the_share(real, synthetic):
    mixtures = [(real, synthetic, 0.5), (synthetic, real, 0.5), (real, synthetic, 0.25), (real, real, 0.5)]
    assert len({data.mixture(*each).fingerprint for each in mixtures}) == 4
    assert data.mixture(*mixtures[0]).fingerprint == data.mixture(*mixtures[0]).fingerprint
