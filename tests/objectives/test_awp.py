"""Weight perturbation: its length tensor by tensor, its direction, where the gradient is taken, what it wraps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry, objectives
from jaxrobust.typing import Model

LINF, GAMMA = geometry.linf(), 0.05
INNER = {
    "cross_entropy": objectives.cross_entropy(),
    "adversarial": objectives.adversarial(attacks.pgd(LINF, 0.1, steps=1)),
    "trades": objectives.trades(LINF, 0.1, steps=1),
}
every = pytest.mark.parametrize("name", INNER)


@pytest.fixture
def case(batch, keys, x64):
    """A bent network with a bias and a tensor of zeros: (keys, model, params, state, batch), in float64."""
    rng = np.random.default_rng(1)
    params = {
        "in": jnp.asarray(3 * rng.standard_normal((4, 6))),
        "bias": jnp.asarray(rng.standard_normal(6)),
        "still": jnp.zeros((6, 6)),
        "out": jnp.asarray(rng.standard_normal((6, 3))),
    }

    def apply(params, state, inputs, *, train):
        del train
        hidden = jnp.tanh((inputs - 0.5).reshape(len(inputs), -1) @ params["in"] + params["bias"])
        return (hidden + hidden @ params["still"]) @ params["out"], state

    batch = batch._replace(inputs=batch.inputs.astype(jnp.float64), weight=jnp.array([0.0, 1.0, 2.0, 1.0, 1.0]))
    return keys, Model(lambda key, inputs: (params, {}), apply), params, {}, batch


def added(params, weights):
    return jax.tree.map(jnp.add, params, weights)


def mean(objective, prepared, case, params):
    keys, model, _, state, batch = case
    return jnp.mean(objective.losses(prepared, keys, model, params, state, batch)[0] * batch.weight)


@every
def test_one_step_by_its_formula(name, case):
    """gamma |w| g / |g| for every tensor, and nothing for biases: g is the gradient of the weighted mean."""
    keys, model, params, state, batch = case
    inner = INNER[name]
    found = objectives.awp(inner, GAMMA).prepare(*case)
    both = jax.vmap(jax.random.split)(keys)
    own = inner.prepare(both[:, 0], model, params, state, batch)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-12), found.prepared, own)

    def slopes(batch):
        return jax.grad(lambda p: mean(inner, own, (*case[:4], batch), p))(params)

    slope, unweighted = slopes(batch), slopes(batch._replace(weight=jnp.ones(5)))
    for leaf in ("in", "out"):
        length = GAMMA * np.linalg.norm(params[leaf])
        expected = length * slope[leaf] / np.linalg.norm(slope[leaf])
        np.testing.assert_allclose(found.weights[leaf], expected, rtol=1e-10)
        assert np.linalg.norm(found.weights[leaf]) == pytest.approx(length, rel=1e-12)
        other = length * unweighted[leaf] / np.linalg.norm(unweighted[leaf])
        assert not np.allclose(found.weights[leaf], other, rtol=1e-2)
        # One length for all tensors together would be another.
        assert np.linalg.norm(found.weights[leaf]) != pytest.approx(GAMMA * np.linalg.norm(params["in"] * 2), rel=1e-2)
    assert not np.any(found.weights["bias"])
    assert not np.any(found.weights["still"])


@every
def test_the_loss_rises_and_the_gradient_is_taken_there(name, case):
    keys, model, params, state, batch = case
    inner, outer = INNER[name], objectives.awp(INNER[name], GAMMA)
    found = outer.prepare(*case)
    rng = np.random.default_rng(0)
    random = jax.tree.map(lambda v: jnp.asarray(rng.standard_normal(v.shape)), found.weights)
    random = jax.tree.map(
        lambda r, v: r * jnp.linalg.norm(v.ravel()) / jnp.linalg.norm(r.ravel()), random, found.weights
    )
    plain, worst, anywhere, best = (
        mean(inner, found.prepared, case, added(params, jax.tree.map(lambda v, s=s: s * v, weights)))
        for s, weights in ((0, found.weights), (1, found.weights), (1, random), (-1, found.weights))
    )
    assert worst > max(plain, anywhere)
    assert best < plain
    value, slope = jax.value_and_grad(lambda p: mean(outer, found, case, p))(params)
    assert float(value) == pytest.approx(float(worst), rel=1e-12)
    there, here = (
        jax.grad(lambda p: mean(inner, found.prepared, case, p))(point)
        for point in (added(params, found.weights), params)
    )
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12), slope, there)
    assert not np.allclose(slope["in"], here["in"], rtol=1e-2)
    # The perturbation is a constant, whatever it was made of.
    _, state_and_metrics = outer.losses(found, keys, model, params, state, batch)
    metrics = inner.losses(found.prepared, keys, model, added(params, found.weights), state, batch)[1][1]
    assert set(state_and_metrics[1]) == set(metrics)


def test_it_is_a_constant(case):
    keys, model, params, state, batch = case
    outer = objectives.awp(INNER["adversarial"], GAMMA)

    def total(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(outer.prepare(keys, model, params, state, batch)))

    value, slope = jax.value_and_grad(total)(params)
    assert value > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope))


def test_more_steps_are_no_weaker_and_stay_in_the_ball(case):
    params = case[2]
    inner = INNER["cross_entropy"]
    one, many = (objectives.awp(inner, 0.5, steps=steps).prepare(*case) for steps in (1, 10))
    height = [mean(inner, (), case, added(params, found.weights)) for found in (one, many)]
    assert height[1] > height[0]
    for leaf in ("in", "out"):
        assert np.linalg.norm(many.weights[leaf]) <= 0.5 * np.linalg.norm(params[leaf]) * (1 + 1e-12)
        assert np.linalg.norm(many.weights[leaf]) > 0.4 * np.linalg.norm(params[leaf])


def test_five_steps_by_their_formula(case):
    """Half of gamma |w| along each gradient, 2.5 / 5, and back into the ball."""
    params, inner, gamma = case[2], INNER["cross_entropy"], 0.5

    def moved(share):
        weights = jax.tree.map(jnp.zeros_like, params)
        for _ in range(5):
            slope = jax.grad(lambda w: mean(inner, (), case, added(params, w)))(weights)
            for leaf in ("in", "out"):
                length = np.linalg.norm(params[leaf])
                weights[leaf] += share * gamma * length * slope[leaf] / np.linalg.norm(slope[leaf])
                weights[leaf] *= min(1, gamma * length / np.linalg.norm(weights[leaf]))
        return weights

    found = objectives.awp(inner, gamma, steps=5).prepare(*case).weights
    expected, small = moved(0.5), moved(0.2)
    for leaf in ("in", "out"):
        np.testing.assert_allclose(found[leaf], expected[leaf], rtol=1e-9)
        assert not np.allclose(found[leaf], small[leaf], rtol=1e-2)


def test_a_radius_of_zero_is_the_objective_itself(case):
    for inner in INNER.values():
        assert objectives.awp(inner, 0) is inner
    tiny = objectives.awp(INNER["trades"], 1e-9)
    found = tiny.prepare(*case)
    assert float(mean(tiny, found, case, case[2])) == pytest.approx(
        float(mean(INNER["trades"], found.prepared, case, case[2])), rel=1e-7
    )
    assert objectives.awp(INNER["trades"]._replace(coupled=True)).coupled


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"radius must not be negative, got -0\.1"):
        objectives.awp(INNER["trades"], -0.1)
    with pytest.raises(ValueError, match="radius must not be negative, got nan"):
        objectives.awp(INNER["trades"], float("nan"))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        objectives.awp(INNER["trades"], steps=0)
