"""Directions of low rank: unbiased, of the rank they say, with a right factor that stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.zeroth_order import forward_gradient, low_rank, random_directions

SLOPE = jnp.linspace(-1.0, 2.0, 30).reshape(6, 5)
MATRIX = {"w": jnp.zeros((6, 5))}


def linear(params):
    return jnp.sum(SLOPE * params["w"])


def test_unbiased_over_keys():
    estimator, count = low_rank(directions=2, rank=3), 4000
    drawn = jax.jit(jax.vmap(lambda key: estimator(key, linear, MATRIX).gradient["w"]))
    samples = np.asarray(drawn(jax.random.split(jax.random.key(0), count)), np.float64)
    deviation = samples.std(0) / np.sqrt(count)
    assert (np.abs(samples.mean(0) - SLOPE) / deviation).max() < 4.5
    # Without the root of the rank it would be three times as long.
    assert (np.abs(3 * samples.mean(0) - SLOPE) / deviation).max() > 10


def test_more_directions_spread_less():
    """Were all of them one, q would change nothing."""

    def spread(directions):
        drawn = jax.jit(jax.vmap(lambda key: low_rank(directions, rank=3)(key, linear, MATRIX).gradient["w"]))
        return np.asarray(drawn(jax.random.split(jax.random.key(1), 1000)), np.float64).var(0).sum()

    assert spread(1) / spread(8) == pytest.approx(8, rel=0.25)


def test_both_sides_cancel_what_is_even():
    def even(params):
        return jnp.sum(jnp.cos(params["w"]))

    found = low_rank(4, smoothing=0.1)(jax.random.key(0), even, MATRIX).gradient["w"]
    one_sided = random_directions(4, smoothing=0.1)(jax.random.key(0), even, MATRIX).gradient["w"]
    assert np.abs(found).max() < 1e-3 < 0.05 < np.abs(one_sided).max()


def test_rank_and_axes():
    params = {"kernel": jnp.zeros((3, 2, 4, 5)), "bias": jnp.zeros(7)}
    found = low_rank(rank=2)(jax.random.key(0), lambda p: p["kernel"].sum() + p["bias"].sum(), params).gradient
    assert np.linalg.matrix_rank(np.asarray(found["kernel"]).reshape(24, 5), tol=1e-4) == 2
    assert np.unique(np.asarray(found["bias"])).size == 7


def rows(interval, steps):
    estimator, state, spans = low_rank(rank=1, interval=interval), None, []
    for key in jax.random.split(jax.random.key(2), steps):
        found = estimator(key, linear, MATRIX, state)
        state = found.state
        row = np.asarray(found.gradient["w"])[0]
        spans.append(row / np.linalg.norm(row) * np.sign(row[0]))
    return np.stack(spans)


def test_the_right_factor_stays_for_an_interval():
    kept, renewed = rows(2, 4), rows(1, 4)
    np.testing.assert_allclose(kept[0], kept[1], atol=1e-4)
    np.testing.assert_allclose(kept[2], kept[3], atol=1e-4)
    assert np.abs(kept[1] - kept[2]).max() > 0.05
    assert np.abs(renewed[0] - renewed[1]).max() > 0.05


def test_forward_gradients_are_exact_along_their_directions():
    def curved(params):
        return jnp.sum(jnp.exp(params["w"] * SLOPE))

    exact = jax.grad(curved)(MATRIX)["w"]
    found = forward_gradient(30, "orthogonal")(jax.random.key(0), curved, MATRIX).gradient["w"]
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert (
        np.abs(forward_gradient(15, "orthogonal")(jax.random.key(0), curved, MATRIX).gradient["w"] - exact).max() > 0.1
    )


def test_forward_gradients_are_unbiased_over_keys():
    estimator, count = forward_gradient(2), 4000
    drawn = jax.jit(jax.vmap(lambda key: estimator(key, linear, MATRIX).gradient["w"]))
    samples = np.asarray(drawn(jax.random.split(jax.random.key(0), count)), np.float64)
    deviation = samples.std(0) / np.sqrt(count)
    assert (np.abs(samples.mean(0) - SLOPE) / deviation).max() < 4.5
    # Directions that do not follow the key would not spread at all.
    assert samples.std(0).min() > 0.1
    assert (np.abs(2 * samples.mean(0) - SLOPE) / deviation).max() > 10
