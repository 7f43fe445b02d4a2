"""Seed replay: the same gradient from a key and a few numbers, in memory that does not grow with them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.zeroth_order import Replay, random_directions, replay, seed_replay

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": jnp.ones(3)}


def value(params):
    return jnp.tanh(params["w"] * 0.7 + params["b"]).sum() ** 2


@pytest.mark.parametrize("kind", ["gaussian", "sphere", "rademacher"])
@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_stored_and_regenerated_directions_give_the_same(kind, chunk_size):
    key = jax.random.key(4)
    stored = random_directions(7, 1e-3, kind, antithetic=True)(key, value, PARAMS)
    again = seed_replay(7, 1e-3, kind, chunk_size)(key, value, PARAMS)
    for one, two in zip(jax.tree.leaves(stored.gradient), jax.tree.leaves(again.gradient), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=2e-2)
    jax.tree.map(np.testing.assert_array_equal, again.gradient, replay(again.state, PARAMS))
    other = replay(replace(again.state, key=jax.random.key(5)), PARAMS)
    assert np.abs(other["w"] - again.gradient["w"]).max() > 1


def test_workers_with_one_key_exchange_slopes_alone():
    shifts, key = jnp.arange(4.0), jax.random.key(1)

    def of_worker(params, shift):
        return value({**params, "b": params["b"] + shift})

    def step(shift):
        found = seed_replay(5)(key, lambda params: of_worker(params, shift), PARAMS)
        slopes = jax.lax.pmean(found.state.slopes, "data")
        return replay(Replay(key, slopes), PARAMS), jax.lax.pmean(found.gradient, "data")

    together, averaged = jax.jit(jax.vmap(step, axis_name="data"))(shifts)
    np.testing.assert_allclose(together["w"][0], averaged["w"][0], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(together["w"], jnp.broadcast_to(together["w"][0], (4, 4, 3)))


def temporaries(estimator):
    params = {"w": jnp.zeros((300, 300))}
    step = jax.jit(lambda key, params: estimator(key, lambda p: jnp.sum(jnp.tanh(p["w"])), params).gradient)
    return step.lower(jax.random.key(0), params).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_directions():
    few, many = temporaries(seed_replay(4)), temporaries(seed_replay(64))
    assert many - few < 4 * 300
    # The control: frames of orthogonal directions are kept.
    assert temporaries(random_directions(16, kind="orthogonal")) > few + 12 * 4 * 300**2
