"""Random directions: unbiased, with the spread that the dimension dictates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.zeroth_order import random_directions
from jaxrobust.zeroth_order.random_directions import gaussian_like

DIMENSION = 40
SLOPE = jnp.linspace(0.5, 2.0, DIMENSION)
PARAMS = {"a": jnp.zeros(DIMENSION // 2), "b": jnp.zeros((4, 5))}


def linear(params):
    return SLOPE @ jnp.concatenate([params["a"], params["b"].reshape(-1)])


def draws(directions, count):
    def one(key):
        found = random_directions(directions)(key, linear, PARAMS).gradient
        return jnp.concatenate([found["a"], found["b"].reshape(-1)])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count)), np.float64)


@pytest.mark.parametrize("directions", [1, 10])
def test_mean_and_norm_follow_the_law(directions):
    samples, slope, count = draws(directions, 3000), np.asarray(SLOPE, np.float64), 3000
    # Of one Gaussian direction: Var(g_i) = slope_i^2 + |slope|^2.
    deviation = np.sqrt((slope**2 + slope @ slope) / directions / count)
    assert (np.abs(samples.mean(0) - slope) / deviation).max() < 4
    assert (np.abs(0.5 * samples.mean(0) - slope) / deviation).max() > 4
    squared = (samples**2).sum(1) / (slope @ slope)
    expected = 1 + (DIMENSION + 1) / directions
    assert abs(squared.mean() - expected) < 4 * squared.std() / np.sqrt(count)
    # Directions on the unit sphere, without their factor, would be caught.
    assert abs(squared.mean() / DIMENSION - expected) > 4 * squared.std() / np.sqrt(count)


@functools.partial(jax.jit, static_argnums=0)
def first_leaf(directions, seed):
    return random_directions(directions)(jax.random.key(seed), linear, PARAMS).gradient["a"]


def test_keys_decide_and_directions_are_counted_from_the_first():
    one, same, other = (first_leaf(3, k) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    seen = {q: first_leaf(q, 0) * q for q in (1, 2)}
    second = gaussian_like(jax.random.fold_in(jax.random.key(0), 1), PARAMS)
    np.testing.assert_allclose(seen[2] - seen[1], linear(second) * second["a"], rtol=1e-2, atol=1e-3)
    assert not np.allclose(seen[1], linear(second) * second["a"], rtol=1e-2, atol=1e-3)
    # Leaves of one shape must not share their draws.
    twins = random_directions(1)(
        jax.random.key(0), lambda p: p["x"].sum() + p["y"].sum(), {"x": PARAMS["a"], "y": PARAMS["a"]}
    )
    assert not np.allclose(twins.gradient["x"], twins.gradient["y"])


def test_memory_does_not_grow_with_directions():
    def temporary(directions):
        params = jnp.zeros(10_000)
        lowered = jax.jit(lambda key: random_directions(directions)(key, jnp.sum, params).gradient).lower(
            jax.random.key(0)
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) <= temporary(2) + 1024
