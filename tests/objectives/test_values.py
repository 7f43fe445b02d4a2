"""Each objective's values against NumPy, and TRADES' gradient through both of its terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import geometry, objectives
from jaxrobust.attacks import losses as attack_losses
from jaxrobust.objectives.trades import disagreement

LINF = geometry.linf()


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def case(plain, batch):
    """Clean and attacked logits in NumPy, float64, from a delta of our own."""
    model, params, state = plain
    delta = 0.1 * jnp.asarray(np.sign(np.random.default_rng(5).standard_normal(batch.inputs.shape)), jnp.float32)

    def logits(images):
        hidden = np.tanh((np.asarray(images, np.float64) - 0.5).reshape(len(images), -1) @ np.asarray(params["in"]))
        return hidden @ np.asarray(params["out"])

    def losses(objective, prepared=delta):
        return objective.losses(prepared, None, model, params, state, batch)[0]

    return logits(batch.inputs), logits(batch.inputs + delta), np.asarray(batch.targets), losses


def smoothed(z, y, share):
    q = (1 - share) * np.eye(3)[y] + share / 3
    return -(q * np.log(softmax(z))).sum(-1)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_cross_entropy(case, share):
    clean, attacked, y, losses = case
    expected = smoothed(clean, y, share)
    np.testing.assert_allclose(losses(objectives.cross_entropy(share), ()), expected, rtol=1e-5)
    assert not np.allclose(smoothed(clean, y, share + 0.1), expected, rtol=1e-3)
    found = losses(objectives.adversarial(lambda *_: None, label_smoothing=share))
    np.testing.assert_allclose(found, smoothed(attacked, y, share), rtol=1e-5)
    assert not np.allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(("beta", "share"), [(6.0, 0.0), (5.0, 0.1), (0.0, 0.0)])
def test_trades(case, beta, share):
    clean, attacked, y, losses = case
    p, q = softmax(clean), softmax(attacked)
    expected = smoothed(clean, y, share) + beta * (p * np.log(p / q)).sum(-1)
    found = losses(objectives.trades(LINF, 0.1, beta=beta, label_smoothing=share))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    reversed_divergence = smoothed(clean, y, share) + beta * (q * np.log(q / p)).sum(-1)
    assert np.allclose(found, reversed_divergence, rtol=1e-4) == (beta == 0)


def test_mart(case):
    clean, attacked, y, losses = case
    p, q = softmax(clean), softmax(attacked)
    rows = np.arange(5)
    other = np.array([np.delete(row, k).max() for row, k in zip(q, y, strict=True)])
    boosted = -np.log(q[rows, y]) - np.log(1.0001 - other + 1e-12)
    weighted = (p * np.log(p / q)).sum(-1) * (1.0000001 - p[rows, y])
    found = losses(objectives.mart(LINF, 0.1, beta=5.0))
    np.testing.assert_allclose(found, boosted + 5 * weighted, rtol=1e-4)
    # The divergence by the weight of the true class; the margin against any class at all.
    assert not np.allclose(found, boosted + 5 * (p * np.log(p / q)).sum(-1) * p[rows, y], rtol=1e-3)
    assert not np.allclose(found, -np.log(q[rows, y]) - np.log(1.0001 - q.max(-1)) + 5 * weighted, rtol=1e-3)


def test_the_gradient_of_trades_flows_through_both_terms(plain, batch, x64):
    model, params, state = jax.tree.map(lambda x: x.astype(jnp.float64) if hasattr(x, "astype") else x, plain)
    batch = batch._replace(inputs=batch.inputs.astype(jnp.float64))
    delta = jnp.asarray(0.2 * np.sign(np.random.default_rng(5).standard_normal(batch.inputs.shape)))
    objective = objectives.trades(LINF, 0.2)
    rng = np.random.default_rng(6)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), params)

    def along(amount, losses):
        moved = jax.tree.map(lambda x, d: x + amount * d, params, direction)
        return losses(moved).mean()

    def whole(params):
        return objective.losses(delta, None, model, params, state, batch)[0]

    def detached(params):
        clean = model.apply(params, state, batch.inputs, train=True)[0]
        attacked = model.apply(params, state, batch.inputs + delta, train=True)[0]
        fixed = jax.lax.stop_gradient(jax.nn.softmax(clean))
        natural = attack_losses.cross_entropy(clean, batch.targets)
        return natural + 6.0 * attack_losses.kl_divergence(attacked, fixed)

    np.testing.assert_allclose(whole(params), detached(params), rtol=1e-10)
    difference = (along(1e-5, whole) - along(-1e-5, whole)) / 2e-5
    assert float(jax.grad(along)(0.0, whole)) == pytest.approx(float(difference), rel=1e-7)
    assert float(jax.grad(along)(0.0, detached)) != pytest.approx(float(difference), rel=1e-2)


def test_the_gradient_of_trades_survives_a_certain_prediction():
    """A probability that underflows to 0 has the logarithm -inf, whose gradient would be nan."""
    clean, attacked = jnp.array([[200.0, 0.0, -50.0]]), jnp.array([[1.0, 2.0, 0.0]])

    def naive(clean, attacked):
        return attack_losses.kl_divergence(attacked, jax.nn.softmax(clean)).sum()

    def ours(clean, attacked):
        return disagreement(clean, attacked).sum()

    assert ours(clean, attacked) == pytest.approx(float(naive(clean, attacked)), rel=1e-6)
    slopes = jax.grad(ours, argnums=(0, 1))(clean, attacked)
    np.testing.assert_allclose(slopes[0], 0, atol=1e-6)
    np.testing.assert_allclose(slopes[1], jax.nn.softmax(attacked) - jax.nn.softmax(clean), atol=1e-6)
    assert np.any(np.isnan(jax.grad(naive)(clean, attacked)))
