"""Where attacks start."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry

IMAGE = jnp.full((20, 20, 2), 0.5)
KEY = jax.random.key(0)


def test_uniform_fills_the_ball():
    delta = np.asarray(attacks.uniform_start(KEY, geometry.linf(), IMAGE, 0.1), np.float64)
    assert np.abs(delta).max() <= 0.1 * (1 + 1e-6)

    def uniform(x):
        return abs((x**2).mean() - 0.01 / 3) < 4 * 0.01 * math.sqrt((1 / 5 - 1 / 9) / x.size)

    assert uniform(delta)
    assert not uniform(0.9 * delta)


def test_gaussian_has_its_scale():
    delta = np.asarray(attacks.gaussian_start(0.01)(KEY, geometry.linf(), IMAGE, 0.1), np.float64)

    def scaled(x):
        return abs((x**2).mean() - 1e-4) < 4 * 1e-4 * math.sqrt(2 / x.size)

    assert scaled(delta)
    assert not scaled(1.2 * delta)


def test_the_default_is_the_scale_of_the_paper():
    delta = attacks.gaussian_start()(KEY, geometry.l2(), IMAGE, 0.1)
    np.testing.assert_allclose(delta, attacks.gaussian_start(0.001)(KEY, geometry.l2(), IMAGE, 0.1))
    assert not np.allclose(delta, 0, atol=1e-4)


def test_no_start_is_the_clean_image():
    assert not np.any(attacks.no_start(KEY, geometry.linf(), IMAGE, 0.1))
    assert np.any(attacks.uniform_start(KEY, geometry.linf(), IMAGE, 0.1))


@pytest.mark.parametrize("start", [attacks.uniform_start, attacks.gaussian_start(), attacks.no_start])
def test_dtype_and_key(start):
    def run(key):
        return start(key, geometry.linf(), IMAGE.astype(jnp.bfloat16), 0.1)

    assert run(KEY).dtype == jnp.bfloat16
    np.testing.assert_array_equal(run(KEY), run(KEY))
    assert np.array_equal(run(KEY), run(jax.random.key(1))) == (start is attacks.no_start)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_bad_scales_are_refused(scale):
    with pytest.raises(ValueError, match=f"scale must be positive, got {scale}"):
        attacks.gaussian_start(scale)
