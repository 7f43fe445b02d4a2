"""Draws: Threefry's words, uniform to the last bit used."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from jaxrobust.aggregation.codecs.draws import threefry, uniform_lanes


def test_words_are_those_of_threefry():
    key, counters = jnp.array([7, 1 << 31], jnp.uint32), jnp.arange(64, dtype=jnp.uint32) * jnp.uint32(0x01234567)
    expected = threefry_2x32(key, counters)
    found = jnp.concatenate(threefry(key[0], key[1], counters[:32], counters[32:]))
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(jnp.concatenate(threefry(key[1], key[0], counters[:32], counters[32:])), expected)


def test_uniform_in_mean_variance_and_bits_and_without_correlation():
    lanes = np.stack(jax.jit(uniform_lanes, static_argnums=(1, 2))(jax.random.key(0), 64, 512), axis=-1)
    flat = lanes.reshape(-1, 8).astype(np.float64)
    rows = len(flat)
    assert flat.min() >= 0
    assert flat.max() < 1
    assert np.abs(flat.mean(0) - 0.5).max() < 4 * np.sqrt(1 / 12 / rows)
    assert np.abs(flat.var(0) - 1 / 12).max() < 4 * np.sqrt(1 / 180 / rows)
    correlations = np.corrcoef(flat.T)[np.triu_indices(8, 1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(rows)
    bits = (flat[:, :, None] * 2.0 ** np.arange(1, 24)).astype(np.int64) % 2
    assert np.abs(bits.mean(0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(rows)
    # Neighbors and buckets share nothing; a lane with itself does.
    assert abs(np.corrcoef(flat[1:, 0], flat[:-1, 7])[0, 1]) < 4 / np.sqrt(rows)
    assert abs(np.corrcoef(lanes[0].ravel(), lanes[1].ravel())[0, 1]) < 4 / np.sqrt(lanes[0].size)
    assert np.corrcoef(flat[:, 0], flat[:, 0])[0, 1] > 0.99


def test_a_buckets_draws_do_not_depend_on_how_many_there_are():
    few, many = (uniform_lanes(jax.random.key(1), buckets, 3) for buckets in (2, 5))
    for short, long in zip(few, many, strict=True):
        np.testing.assert_array_equal(short, long[:2])
    later = uniform_lanes(jax.random.key(1), 2, 3, first=3)
    np.testing.assert_array_equal(later[5], many[5][3:])
    assert not np.array_equal(few[0][0], few[0][1])
