"""QSGD: unbiased, with the variance of its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import codecs
from jaxrobust.aggregation.codecs import quantization

BITS, BUCKET, DIMENSION, DRAWS = 3, 16, 53, 4000


def decoded(codec, x, keys):
    def one(key):
        wire, _ = codec.encode(key, x, codec.init(x.size))
        return codec.decode(wire, ())[: x.size]

    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def exact_variance(x, bits, bucket):
    x, s = np.asarray(x, np.float64), 2 ** (bits - 1) - 1
    found = []
    for start in range(0, x.size, bucket):
        v = x[start : start + bucket]
        c = np.linalg.norm(v)
        r = np.abs(v) / c
        low = np.floor(r * s) / s
        found.append(c**2 * (low + 1 / s - r) * (r - low))
    return np.concatenate(found)


def sigmas_off(samples, x, variance):
    return np.abs(samples.mean(0) - np.asarray(x, np.float64)) / np.sqrt(variance / len(samples))


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(7), (DIMENSION,)) * jnp.linspace(0.01, 3.0, DIMENSION)


def test_unbiased_with_the_variance_of_the_formula(x):
    samples = decoded(codecs.qsgd(BITS, BUCKET), x, jax.random.split(jax.random.key(0), DRAWS))
    variance = exact_variance(x, BITS, BUCKET)
    assert sigmas_off(samples, x, variance).max() < 4
    errors = ((samples - np.asarray(x, np.float64)) ** 2).sum(1)
    assert abs(errors.mean() - variance.sum()) < 4 * errors.std() / np.sqrt(DRAWS)


def test_rounding_to_the_nearest_would_be_caught(x, monkeypatch):
    def half(key, buckets, columns):
        return [jnp.full((buckets, columns), 0.5)] * 8

    monkeypatch.setattr(quantization, "uniform_lanes", half)
    samples = decoded(codecs.qsgd(BITS, BUCKET), x, jax.random.split(jax.random.key(0), DRAWS))
    assert sigmas_off(samples, x, exact_variance(x, BITS, BUCKET)).max() > 4


def test_one_key_for_all_draws_would_be_caught(x):
    samples = decoded(codecs.qsgd(BITS, BUCKET), x, jnp.broadcast_to(jax.random.key(0), DRAWS))
    assert sigmas_off(samples, x, exact_variance(x, BITS, BUCKET)).max() > 4


def test_levels_by_hand():
    # Norm 5, three levels above zero: 3/5 lies between 1/3 and 2/3, 4/5 between 2/3 and 1.
    samples = decoded(codecs.qsgd(bits=3), jnp.array([3.0, -4.0]), jax.random.split(jax.random.key(0), 200))
    np.testing.assert_allclose(np.unique(samples[:, 0]), [5 / 3, 10 / 3], rtol=1e-6)
    np.testing.assert_allclose(np.unique(samples[:, 1]), [-5.0, -10 / 3], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_neither_vanish_nor_overflow(scale):
    samples = decoded(codecs.qsgd(bits=8), jnp.array([3.0, 4.0]) * scale, jax.random.split(jax.random.key(0), 10))
    np.testing.assert_allclose(samples / scale, np.tile([3.0, 4.0], (10, 1)), atol=5 / 127)


def test_variance_is_below_the_published_bound(x):
    s = 2 ** (BITS - 1) - 1
    bound = min(BUCKET / s**2, np.sqrt(BUCKET) / s) * np.sum(np.asarray(x, np.float64) ** 2)
    assert exact_variance(x, BITS, BUCKET).sum() <= bound


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="bits must lie in 2 to 8, got 1"):
        codecs.qsgd(bits=1)
    with pytest.raises(ValueError, match="bucket_size must be positive, got 0"):
        codecs.qsgd(bucket_size=0)
