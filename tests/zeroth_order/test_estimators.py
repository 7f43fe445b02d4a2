"""Laws that every zeroth-order estimator keeps; a new estimator is a new row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.typing import backprop
from jaxrobust.zeroth_order import coordinate, forward_gradient, low_rank, random_directions, seed_replay

ROWS = {
    "coordinate": (coordinate(chunk_size=3), lambda d: d + 1),
    "coordinate_central": (coordinate(central=True, chunk_size=4), lambda d: 2 * d + 1),
    "random_directions": (random_directions(directions=5), lambda d: 6),
    "antithetic": (random_directions(directions=4, antithetic=True), lambda d: 9),
    "sphere": (random_directions(directions=5, kind="sphere"), lambda d: 6),
    "rademacher": (random_directions(directions=5, kind="rademacher"), lambda d: 6),
    "orthogonal": (random_directions(directions=5, kind="orthogonal"), lambda d: 6),
    "seed_replay": (seed_replay(directions=5, chunk_size=2), lambda d: 11),
    "low_rank": (low_rank(directions=5, rank=2), lambda d: 11),
    "forward_gradient": (forward_gradient(directions=5), lambda d: 6),
}
PARAMS = {"a": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "empty": jnp.zeros((0, 4)), "scalar": jnp.float32(0.5)}


def losses(params):
    return jnp.tanh(params["a"].sum(1) + params["scalar"]) ** 2 + params["empty"].sum()


def counted(function, calls):
    """The function, which tells the host whenever it is evaluated."""

    def evaluated(params):
        values = function(params)
        jax.debug.callback(lambda _: calls.append(0), values)
        return values

    return evaluated


@pytest.mark.parametrize("name", ROWS)
def test_queries_are_counted_right(name):
    estimator, expected = ROWS[name]
    calls = []
    found = jax.jit(lambda key, params: estimator(key, counted(losses, calls), params))(jax.random.key(0), PARAMS)
    jax.block_until_ready(found.gradient)
    jax.effects_barrier()
    assert len(calls) == int(found.queries) == expected(7)
    assert found.queries.dtype == jnp.int32


@pytest.mark.parametrize("name", ROWS)
def test_where_the_function_is_no_number_the_gradient_is_none(name):
    """What guards against it, as `optax.apply_if_finite`, must see it."""
    estimator, _ = ROWS[name]
    point = {"x": jnp.array([-1.0, 2.0])}
    broken, sound = (
        jax.jit(lambda params, f=f: estimator(jax.random.key(0), lambda p: jnp.sum(f(p["x"])), params))(point)
        for f in (jnp.log, jnp.exp)
    )
    assert np.isnan(broken.gradient["x"]).all()
    assert np.isnan(broken.value)
    assert np.isfinite(sound.gradient["x"]).all()


@pytest.mark.parametrize("name", ROWS)
def test_plain_numbers_are_parameters_too(name):
    estimator, _ = ROWS[name]
    found = estimator(jax.random.key(0), lambda p: p["s"] ** 2, {"s": 1.5})
    array = estimator(jax.random.key(0), lambda p: p["s"] ** 2, {"s": jnp.float32(1.5)})
    np.testing.assert_array_equal(found.gradient["s"], array.gradient["s"])
    assert float(found.gradient["s"]) > 0


@pytest.mark.parametrize("name", ["seed_replay", "low_rank"])
def test_states_hold_old_keys_and_refuse_what_they_cannot(name):
    estimator, _ = ROWS[name]

    def step(state, key):
        found = estimator(key, losses, PARAMS, state)
        return found.state, found.gradient["a"]

    raw = jnp.stack([jax.random.PRNGKey(number) for number in range(3)])
    _, old = jax.lax.scan(step, estimator.init(PARAMS), raw)
    _, new = jax.lax.scan(step, estimator.init(PARAMS), jax.random.wrap_key_data(raw))
    np.testing.assert_array_equal(old, new)
    with pytest.raises(ValueError, match="key must be of the default implementation, threefry2x32, got rbg"):
        estimator(jax.random.key(0, impl="rbg"), losses, PARAMS)


@pytest.mark.parametrize("name", ROWS)
def test_value_aux_and_shapes(name):
    estimator, _ = ROWS[name]

    def with_aux(params):
        return losses(params), {"seen": params["scalar"]}

    found = estimator(jax.random.key(0), with_aux, PARAMS, has_aux=True)
    np.testing.assert_allclose(found.value, losses(PARAMS).mean(), rtol=1e-6)
    assert found.aux["seen"] == 0.5
    assert jax.tree.map(jnp.shape, found.gradient) == jax.tree.map(jnp.shape, PARAMS)
    jitted = jax.jit(lambda key: estimator(key, losses, PARAMS))(jax.random.key(0))
    for one, other in zip(jax.tree.leaves(found.gradient), jax.tree.leaves(jitted.gradient), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtype_is_kept(name, dtype):
    estimator, _ = ROWS[name]
    found = estimator(jax.random.key(0), lambda x: jnp.sum(x.astype(jnp.float32)), jnp.ones(3, dtype))
    assert found.gradient.dtype == dtype


@pytest.mark.parametrize("name", ROWS)
def test_descends_like_the_exact_gradient(name):
    estimator, _ = ROWS[name]
    target = jnp.array([1.0, -2.0, 0.5])

    def value(x):
        return (x - target) ** 2

    x = jnp.zeros(3)
    step = jax.jit(lambda key, x: x - 0.1 * estimator(key, value, x).gradient)
    for key in jax.random.split(jax.random.key(0), 300):
        x = step(key, x)
    assert jnp.max(jnp.abs(x - target)) < 0.05
    assert jnp.max(jnp.abs(backprop()(key, value, x).gradient)) < 0.05
    # Ascending leaves the minimum: the check sees a wrong sign.
    assert jnp.mean(value(step(key, target + 1) * 2 - (target + 1))) < jnp.mean(value(target + 1))
    assert jnp.mean(value(2 * (target + 1) - step(key, target + 1))) > jnp.mean(value(target + 1))


@pytest.mark.parametrize("name", ROWS)
def test_leaves_that_are_not_floats_are_refused(name):
    estimator, _ = ROWS[name]
    with pytest.raises(ValueError, match=r"params must have floating-point leaves, got int32 at \['steps'\]"):
        estimator(jax.random.key(0), lambda tree: tree["a"], {"a": jnp.ones(2), "steps": jnp.arange(2)})


def test_bad_arguments_are_refused():
    for build in (coordinate, random_directions):
        with pytest.raises(ValueError, match=r"smoothing must be positive, got -1\.0"):
            build(smoothing=-1.0)
    with pytest.raises(ValueError, match="chunk_size must be positive, got 0"):
        coordinate(chunk_size=0)
    for build in (random_directions, seed_replay, low_rank, forward_gradient):
        with pytest.raises(ValueError, match="directions must be positive, got 0"):
            build(directions=0)
    for build in (random_directions, seed_replay, forward_gradient):
        with pytest.raises(ValueError, match=r"kind must be one of gaussian, .*, got 'cauchy'"):
            build(kind="cauchy")
    with pytest.raises(ValueError, match="kind must be one that is drawn anew, got 'orthogonal'"):
        seed_replay(kind="orthogonal")
    with pytest.raises(ValueError, match="chunk_size must be positive, got 0"):
        seed_replay(chunk_size=0)
    with pytest.raises(ValueError, match="rank must be positive, got 0"):
        low_rank(rank=0)
    with pytest.raises(ValueError, match="interval must be positive, got 0"):
        low_rank(interval=0)
