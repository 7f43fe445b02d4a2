"""Proximal maps and FISTA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust import geometry
from jaxrobust.implicit_bias import proximal, proximal_gradient

SHAPE = (3, 4, 1)
NORMS = {
    "l1": geometry.l1(),
    "l2": geometry.l2(),
    "linf": geometry.linf(),
    "l3": geometry.lp(3.0),
    "fourier_l1": geometry.fourier_l1(),
}
every = pytest.mark.parametrize("name", NORMS)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(seed, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(SHAPE))


def test_by_hand():
    x = jnp.array([3.0, -4.0, 0.5])
    np.testing.assert_allclose(proximal(geometry.l1(), x, 1.0), [2.0, -3.0, 0.0])
    np.testing.assert_allclose(proximal(geometry.l2(), jnp.array([3.0, 4.0]), 1.0), [2.4, 3.2], rtol=1e-6)
    np.testing.assert_allclose(proximal(geometry.l2(), jnp.array([0.3, 0.4]), 1.0), [0.0, 0.0], atol=1e-7)
    # The largest entry comes down by the whole strength, then both together.
    np.testing.assert_allclose(proximal(geometry.linf(), x, 0.5), [3.0, -3.5, 0.5])
    np.testing.assert_allclose(proximal(geometry.linf(), x, 2.0), [2.5, -2.5, 0.5])


@every
def test_the_proximal_point_is_the_minimizer(name, x64):
    """u minimizes |u - x|^2 / 2 + s |u| just when x - u is s times a subgradient of the norm at u."""
    norm = NORMS[name]

    def optimal(x, u, strength):
        rest = x - u
        within = float(norm.dual_norm(rest)) <= strength * (1 + 1e-6)
        return within and abs(float(jnp.sum(rest * u)) - strength * float(norm.norm(u))) < 1e-6

    for strength in (0.1, 1.0, 100.0):
        x = draw(0)
        u = proximal(norm, x, strength)
        assert optimal(x, u, strength)
        assert not optimal(x, x, strength)
        assert strength == 100.0 or not optimal(x, proximal(norm, x, 0.9 * strength), strength)
    assert not np.any(np.abs(proximal(norm, draw(0), 100.0)) > 1e-12)


@every
def test_moreau(name, x64):
    """The proximal point and the projection on the dual ball, two nearest points, sum to x at a right angle to it."""
    norm, x = NORMS[name], draw(1)
    u = proximal(norm, x, 0.7)
    dual = norm.dual()
    projected = dual.project(x, 0.7)
    np.testing.assert_allclose(u + projected, x, atol=1e-12)
    assert float(dual.norm(projected)) == pytest.approx(0.7, rel=1e-9)
    assert float(jnp.sum(u * projected)) == pytest.approx(0.7 * float(norm.norm(u)), rel=1e-6)


def fit(optimizer, loss, steps, start):
    def step(carry, _):
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slope, state, params, value=value, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    (_, state), _ = jax.jit(lambda start: jax.lax.scan(step, (start, optimizer.init(start)), length=steps))(start)
    return state.solution


def least_squares(seed):
    generator = np.random.default_rng(seed)
    matrix, target = generator.standard_normal((20, 12)), generator.standard_normal(20)

    def loss(x):
        return jnp.sum((jnp.asarray(matrix) @ x.reshape(-1) - jnp.asarray(target)) ** 2) / 2

    return loss, np.linalg.norm(matrix, 2) ** 2


@functools.cache
def solution_of_a_weaker_penalty(name, strength):
    """The control, once for all ways of solving."""
    loss, smoothness = least_squares(0)
    return fit(proximal_gradient(NORMS[name], 0.9 * strength, 1 / smoothness), loss, 3000, jnp.zeros(SHAPE))


# The proximal point of l3 is itself found by iterations, in each of thousands of steps.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow, pytest.mark.long]) if n == "l3" else n for n in NORMS]
)
@pytest.mark.parametrize("how", ["fista", "ista", "backtracking"])
def test_the_solution_is_a_stationary_point(name, how, x64):
    norm, strength = NORMS[name], 2.0
    loss, smoothness = least_squares(0)
    rate, halvings = (100 / smoothness, 30) if how == "backtracking" else (1 / smoothness, 0)
    optimizer = proximal_gradient(norm, strength, rate, accelerated=how != "ista", max_backtracking_steps=halvings)

    def residual(w):
        slope = jax.grad(loss)(w)
        beyond = max(0.0, float(norm.dual_norm(slope)) / strength - 1)
        return beyond + abs(float(jnp.sum(slope * w)) / (strength * float(norm.norm(w))) + 1)

    found = fit(optimizer, loss, 3000, jnp.zeros(SHAPE))
    assert residual(found) < 1e-5
    assert residual(fit(optimizer, loss, 3, jnp.zeros(SHAPE))) > 1e-3
    assert residual(solution_of_a_weaker_penalty(name, strength)) > 1e-3


def test_l1_zeros_are_exact():
    loss, smoothness = least_squares(0)
    with jax.numpy_dtype_promotion("standard"):
        found = fit(proximal_gradient(geometry.l1(), 5.0, 1 / smoothness), loss, 500, jnp.zeros(SHAPE))
    assert 0 < np.sum(np.asarray(found) == 0) < found.size


def test_acceleration_is_faster(x64):
    generator = np.random.default_rng(0)
    scales = jnp.asarray(np.geomspace(1e-3, 1, 12).reshape(SHAPE))
    target = jnp.asarray(generator.standard_normal(SHAPE))

    def loss(x):
        return jnp.sum(scales * (x - target) ** 2) / 2

    def gap(accelerated):
        found = fit(proximal_gradient(geometry.l2(), 1e-4, 1.0, accelerated=accelerated), loss, 200, jnp.zeros(SHAPE))
        return float(loss(found) + 1e-4 * jnp.linalg.norm(found))

    best = fit(proximal_gradient(geometry.l2(), 1e-4, 1.0), loss, 20_000, jnp.zeros(SHAPE))
    least = float(loss(best) + 1e-4 * jnp.linalg.norm(best))
    assert gap(True) - least < 0.2 * (gap(False) - least)


def test_several_leaves_are_one_vector(x64):
    loss, smoothness = least_squares(0)
    optimizer = proximal_gradient(geometry.l2(), 2.0, 1 / smoothness)
    whole = fit(optimizer, loss, 200, jnp.zeros(12))

    def split(params):
        return loss(jnp.concatenate([params["a"], params["b"]]))

    parts = fit(optimizer, split, 200, {"a": jnp.zeros(5), "b": jnp.zeros(7)})
    np.testing.assert_allclose(jnp.concatenate([parts["a"], parts["b"]]), whole, atol=1e-12)
    assert np.abs(whole).max() > 0.1


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="strength must not be negative, got -1"):
        proximal_gradient(geometry.l1(), -1, 0.1)
    with pytest.raises(ValueError, match="learning_rate must be positive, got 0"):
        proximal_gradient(geometry.l1(), 1, 0)
    with pytest.raises(ValueError, match="geometry must have a dual, got spectral"):
        proximal_gradient(geometry.spectral(), 1, 0.1)
    with pytest.raises(ValueError, match="geometry must have a dual, got spectral"):
        proximal(geometry.spectral(), jnp.ones((2, 2)), 1.0)
    with pytest.raises(ValueError, match="strength must not be negative, got -1"):
        proximal(geometry.l1(), jnp.ones(2), -1)
    optimizer = proximal_gradient(geometry.l1(), 1.0, 0.1, max_backtracking_steps=3)
    with pytest.raises(ValueError, match="params must be given"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
    with pytest.raises(ValueError, match="value and value_fn must be given"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))


def test_a_search_that_finds_no_step_stays():
    """On a loss too steep for the halvings allowed, the solution waits; the next search begins lower."""
    optimizer = proximal_gradient(geometry.l2(), 0.0, 1.0, max_backtracking_steps=3)

    def loss(x):
        return 50 * jnp.sum(x**2)

    params, state, found = jnp.ones(2), optimizer.init(jnp.ones(2)), []
    for _ in range(12):
        value, slope = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slope, state, params, value=value, value_fn=loss)
        params = optax.apply_updates(params, updates)
        found.append(float(loss(state.solution)))
    assert found[0] == 100
    assert np.all(np.diff(found) <= 1e-6)
    assert found[-1] < 1
    # The step that was refused would have thrown it far.
    thrown = proximal_gradient(geometry.l2(), 0.0, 1.0)
    slope = jax.grad(loss)(jnp.ones(2))
    _, state = thrown.update(slope, thrown.init(jnp.ones(2)), jnp.ones(2))
    assert float(loss(state.solution)) > 1e5
