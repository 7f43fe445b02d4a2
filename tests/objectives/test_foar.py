"""The first-order bound: closed form on linear models, dual norms, below the true maximum of a convex loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry, objectives
from jaxrobust.attacks import losses as attack_losses
from jaxrobust.objectives.foar import input_gradient
from jaxrobust.typing import Model

RADIUS = 0.1
BALLS = {"linf": geometry.linf(), "l2": geometry.l2(), "l1": geometry.l1(), "fourier_linf": geometry.fourier_linf()}
DUALS = {
    "linf": lambda g: np.abs(g).sum(),
    "l2": lambda g: np.sqrt((g**2).sum()),
    "l1": lambda g: np.abs(g).max(),
    "fourier_linf": lambda g: np.abs(np.fft.fft2(g, axes=(0, 1), norm="ortho")).sum(),
}


@pytest.fixture
def linear():
    """Logits W x of three classes, and W as `[class, 2, 2, 1]`."""
    weight = np.random.default_rng(0).standard_normal((3, 2, 2, 1))

    def apply(params, state, inputs, *, train):
        del train
        return jnp.einsum("nhwc,khwc->nk", inputs, params), state

    return Model(lambda key, inputs: (jnp.asarray(weight), {}), apply), weight


@pytest.mark.parametrize("name", BALLS)
def test_the_closed_form_on_a_linear_model(name, linear, batch, x64):
    model, weight = linear
    batch = batch._replace(inputs=batch.inputs.astype(jnp.float64))
    logits = np.einsum("nhwc,khwc->nk", batch.inputs, weight)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = np.asarray(batch.targets)
    slopes = np.einsum("nk,khwc->nhwc", p - np.eye(3)[y], weight)
    expected = -np.log(p[range(5), y]) + RADIUS * np.array([DUALS[name](slope) for slope in slopes])
    objective = objectives.foar(BALLS[name], RADIUS)
    found, (_, metrics) = objective.losses((), None, model, jnp.asarray(weight), {}, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(metrics["regularizer"], expected + np.log(p[range(5), y]), rtol=1e-10)
    # The norm itself in place of its dual.
    own = jax.vmap(BALLS[name].norm)(jnp.asarray(slopes))
    assert np.allclose(RADIUS * own, metrics["regularizer"], rtol=1e-3) == (name == "l2")


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_it_is_below_the_inner_maximum_of_a_convex_loss(name, linear, batch, keys, x64):
    model, weight = linear
    params, inputs = jnp.asarray(weight), batch.inputs.astype(jnp.float64)
    attack = attacks.pgd(BALLS[name], RADIUS, steps=20, start=attacks.no_start)
    logits_fn = lambda images: model.apply(params, {}, images, train=False)[0]  # noqa: E731
    most = attack_losses.cross_entropy(logits_fn(attack(keys, logits_fn, inputs, batch.targets)), batch.targets)

    def bound(radius):
        objective = objectives.foar(BALLS[name], radius)
        return objective.losses((), None, model, params, {}, batch._replace(inputs=inputs))[0]

    assert np.all(bound(RADIUS) <= most * (1 + 1e-9))
    np.testing.assert_allclose(bound(RADIUS), most, rtol=0.05)
    assert np.all(bound(2 * RADIUS) > most)


@pytest.mark.parametrize("name", BALLS)
def test_gradients_of_the_parameters(name, plain, batch, x64):
    model, params, state = jax.tree.map(lambda x: x.astype(jnp.float64) if hasattr(x, "astype") else x, plain)
    batch = batch._replace(inputs=batch.inputs.astype(jnp.float64))
    rng = np.random.default_rng(6)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), params)

    @jax.jit
    def along(amount):
        moved = jax.tree.map(lambda x, d: x + amount * d, params, direction)
        return objectives.foar(BALLS[name], RADIUS).losses((), None, model, moved, state, batch)[1][1]["regularizer"]

    difference = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jacfwd(along)(0.0), difference, rtol=1e-5, atol=1e-8)
    assert np.abs(difference).max() > 1e-3


def test_a_gradient_of_zero_stays_finite(plain, batch):
    """A network that says the same of every image has no slope, and its parameters still have a finite gradient."""
    model, params, state = plain
    params = {**params, "out": jnp.zeros_like(params["out"])}
    for ball in BALLS.values():
        objective = objectives.foar(ball, RADIUS)
        slope = jax.grad(
            lambda params, objective=objective: objective.losses((), None, model, params, state, batch)[0].mean()
        )(params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_the_penalty_is_by_the_running_statistics(normalized, batch):
    model, params, state = normalized
    _, (_, metrics) = objectives.foar(geometry.l2(), RADIUS).losses((), None, model, params, state, batch)
    slopes = input_gradient(model, params, state, batch.inputs, batch.targets)
    np.testing.assert_allclose(metrics["regularizer"], RADIUS * jnp.sqrt((slopes**2).sum((1, 2, 3))), rtol=1e-5)
    fixed = model._replace(apply=lambda p, s, x, *, train: model.apply(p, s, x, train=True))
    training = input_gradient(fixed, params, state, batch.inputs, batch.targets)
    assert not np.allclose(training, slopes, rtol=1e-2)


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_a_bad_radius_is_refused(radius):
    with pytest.raises(ValueError, match=f"radius must be positive, got {radius}"):
        objectives.foar(geometry.linf(), radius)
