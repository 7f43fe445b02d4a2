"""Random directions: unbiased, with the spread that the dimension dictates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.zeroth_order import random_directions
from jaxrobust.zeroth_order.directions import directions_of, gaussian_like

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


@pytest.mark.parametrize("kind", ["gaussian", "sphere", "rademacher", "orthogonal"])
def test_every_kind_has_the_identity_as_second_moment(kind):
    @jax.jit
    @jax.vmap
    def drawn(key):
        direction_of = directions_of(kind, key, PARAMS, 3)
        return jnp.stack([jnp.concatenate([u.reshape(-1) for u in direction_of(k).values()]) for k in range(3)])

    vectors = np.asarray(drawn(jax.random.split(jax.random.key(0), 2000)), np.float64)
    moment, count = np.einsum("ski,skj->ij", vectors, vectors) / 6000, 6000
    deviation = np.sqrt((1 + 2 * np.eye(DIMENSION)) / count)
    assert (np.abs(moment - np.eye(DIMENSION)) / deviation).max() < 5
    # No side is preferred: a frame as a decomposition gives it, its signs not drawn, prefers one.
    assert np.abs(vectors.mean(0)).max() < 5 / np.sqrt(2000)
    # The unit sphere without its factor, and directions that repeat, would be caught.
    assert (np.abs(moment / DIMENSION - np.eye(DIMENSION)) / deviation).max() > 5
    assert np.abs(np.einsum("si,si->s", vectors[:, 0], vectors[:, 1])).max() < 0.9 * DIMENSION
    lengths = np.linalg.norm(vectors, axis=-1)
    assert (np.abs(lengths - np.sqrt(DIMENSION)).max() < 1e-4) == (kind != "gaussian")


def test_as_many_orthogonal_directions_as_coordinates_are_exact_and_more_go_on():
    found = random_directions(2 * DIMENSION, kind="orthogonal")(jax.random.key(3), linear, PARAMS).gradient
    exact = jax.grad(linear)(PARAMS)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=2e-3), found, exact)
    fewer = random_directions(DIMENSION // 2, kind="orthogonal")(jax.random.key(3), linear, PARAMS).gradient
    assert np.abs(fewer["a"] - exact["a"]).max() > 0.1


@pytest.mark.parametrize("kind", ["gaussian", "sphere", "rademacher", "orthogonal"])
def test_more_directions_keep_the_first(kind):
    few, many = (directions_of(kind, jax.random.key(0), PARAMS, count) for count in (2, 7))
    np.testing.assert_allclose(few(1)["b"], many(1)["b"], atol=1e-4)
    assert np.abs(few(0)["b"] - many(1)["b"]).max() > 0.1


def test_both_sides_cancel_what_is_even():
    def even(params):
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(params))

    one_sided = random_directions(smoothing=0.1)(jax.random.key(0), even, PARAMS).gradient["a"]
    both = random_directions(smoothing=0.1, antithetic=True)(jax.random.key(0), even, PARAMS).gradient["a"]
    assert np.abs(both).max() < 1e-3 < 0.1 < np.abs(one_sided).max()
