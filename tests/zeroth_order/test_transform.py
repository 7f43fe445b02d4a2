"""An estimator in an optax chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust.typing import Estimate, Estimator, backprop
from jaxrobust.zeroth_order import as_transform, coordinate, random_directions

KEY = jax.random.key(0)
PARAMS = {"known": jnp.array([1.0, 2.0]), "black": {"box": jnp.array([3.0, -1.0, 2.0])}}


def value(params):
    return jnp.stack([jnp.sum(params["known"] ** 2), 3 * jnp.sum(params["black"]["box"] ** 2)])


@pytest.mark.parametrize("estimator", [coordinate(central=True), random_directions(20), backprop()])
def test_a_chain_minimizes_without_gradients(estimator):
    optimizer = optax.chain(as_transform(estimator, KEY), optax.sgd(0.03))
    params, state = PARAMS, optimizer.init(PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(zeros, state, params, value_fn=value)
        return optax.apply_updates(params, updates), state

    for _ in range(300):
        params, state = step(params, state)
    assert value(params).mean() < 1e-3
    assert value(PARAMS).mean() > 1
    assert int(state[0].queries) == 300 * int(estimator(KEY, value, PARAMS).queries)
    assert int(state[0].count) == 300


MASKS = {
    "tree": {"known": False, "black": {"box": True}},
    "prefix": {"known": False, "black": True},
    "function": lambda params: jax.tree.map(lambda leaf: leaf.size == 3, params),
}


@pytest.mark.parametrize("where", MASKS.values(), ids=MASKS)
def test_leaves_outside_pass_the_incoming_gradient(where):
    transform = as_transform(coordinate(central=True), KEY, where)
    incoming = jax.tree.map(lambda leaf: jnp.full_like(leaf, 77.0), PARAMS)
    updates, state = transform.update(incoming, transform.init(PARAMS), PARAMS, value_fn=value)
    np.testing.assert_array_equal(updates["known"], incoming["known"])
    np.testing.assert_allclose(updates["black"]["box"], 3 * PARAMS["black"]["box"], rtol=1e-3)
    assert int(state.queries) == 7
    everywhere = as_transform(coordinate(central=True), KEY)
    updates, _ = everywhere.update(incoming, everywhere.init(PARAMS), PARAMS, value_fn=value)
    np.testing.assert_allclose(updates["known"], PARAMS["known"], rtol=1e-3)


def test_integer_leaves_may_lie_outside():
    params = {"steps": jnp.arange(2), "w": jnp.ones(3)}
    transform = as_transform(coordinate(), KEY, {"steps": False, "w": True})
    updates, _ = transform.update(params, transform.init(params), params, value_fn=lambda p: p["w"].sum())
    np.testing.assert_array_equal(updates["steps"], params["steps"])


def test_every_update_has_its_own_key_and_the_estimators_state_goes_on():
    def estimate(key, value_fn, params, state):
        gradient = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)
        return Estimate(value_fn(params)[0], gradient, jnp.int32(3), None, state + 1)

    transform = as_transform(Estimator(lambda params: jnp.int32(0), estimate), KEY)
    state, seen = transform.init(jnp.ones(4)), []
    for _ in range(3):
        updates, state = transform.update(jnp.ones(4), state, jnp.ones(4), value_fn=jnp.sum)
        seen.append(np.asarray(updates))
    assert len(np.unique(seen, axis=0)) == 3
    assert (int(state.estimator), int(state.queries)) == (3, 9)
    again, _ = transform.update(jnp.ones(4), transform.init(jnp.ones(4)), jnp.ones(4), value_fn=jnp.sum)
    np.testing.assert_array_equal(again, seen[0])


def test_what_is_missing_is_named():
    transform = as_transform(coordinate(), KEY)
    state = transform.init(jnp.ones(2))
    with pytest.raises(ValueError, match="params must be given, got None"):
        transform.update(jnp.ones(2), state, value_fn=jnp.sum)
    with pytest.raises(ValueError, match="value_fn must be given, got None"):
        transform.update(jnp.ones(2), state, jnp.ones(2))
