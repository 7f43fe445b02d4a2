"""Laws that every objective keeps; a new objective is a new row."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry, objectives
from jaxrobust.objectives.awp import Perturbed

RADIUS = 0.1
LINF = geometry.linf()


def pgd(**options):
    return attacks.pgd(LINF, RADIUS, steps=1, **options)


def uniform(method, **options):
    return method(LINF, RADIUS, steps=1, start=attacks.uniform_start, **options)


# Builds the objective; the options reach its attack.
ATTACKING = {
    "adversarial": lambda **options: objectives.adversarial(pgd(), **options),
    "trades": lambda **options: uniform(objectives.trades, **options),
    "mart": lambda **options: uniform(objectives.mart, **options),
    "soar": lambda **options: objectives.soar(LINF, RADIUS, **options),
}
ROWS = {
    "cross_entropy": objectives.cross_entropy,
    "foar": lambda: objectives.foar(LINF, RADIUS),
    "awp": lambda: objectives.awp(objectives.adversarial(pgd()), 0.1),
    **ATTACKING,
}
METRICS = {
    "cross_entropy": {"clean_accuracy"},
    "foar": {"clean_accuracy", "regularizer"},
    "awp": {"adversarial_accuracy"},
    "soar": {"adversarial_accuracy", "regularizer"},
    "adversarial": {"adversarial_accuracy"},
    "trades": {"clean_accuracy", "adversarial_accuracy", "kl"},
    "mart": {"clean_accuracy", "adversarial_accuracy", "kl"},
}


def given(name, params, delta):
    """What an objective prepares, from a delta of our own."""
    if name == "awp":
        return Perturbed(delta, jax.tree.map(jnp.zeros_like, params))
    return delta if name in ATTACKING else ()


def step(objective, model):
    """Both parts of an objective as one function."""

    def run(keys, params, state, batch):
        prepared = objective.prepare(keys, model, params, state, batch)
        return prepared, objective.losses(prepared, keys, model, params, state, batch)

    return jax.jit(run)


@pytest.mark.parametrize("name", ROWS)
def test_one_loss_an_example_from_its_own_key(name, plain, keys, batch):
    model, params, state = plain
    run = step(ROWS[name](), model)
    _, (losses, (_, metrics)) = run(keys, params, state, batch)
    assert (losses.shape, losses.dtype) == ((5,), jnp.float32)
    assert set(metrics) == METRICS[name]
    assert all(value.shape == (5,) for value in metrics.values())
    order = np.array([3, 0, 4, 1, 2])
    shuffled = jax.tree.map(lambda x: x[order], batch)
    _, (moved, _) = run(keys[order], params, state, shuffled)
    np.testing.assert_allclose(moved, losses[order], rtol=1e-5)
    assert not np.allclose(moved, losses, rtol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_metrics_are_those_of_the_training_batch(name, plain, keys, batch):
    model, params, state = plain
    prepared, (_, (_, metrics)) = step(ROWS[name](), model)(keys, params, state, batch)
    points = {"clean_accuracy": batch.inputs}
    if name in ATTACKING:
        points["adversarial_accuracy"] = batch.inputs + prepared
    for metric, images in points.items():
        if metric in metrics:
            classes = model.apply(params, state, images, train=False)[0].argmax(-1)
            np.testing.assert_array_equal(metrics[metric], classes == batch.targets)
            wrong = jnp.roll(batch.targets, 1)
            assert not np.array_equal(metrics[metric], classes == wrong)


@pytest.mark.parametrize("name", ATTACKING)
def test_the_delta_is_feasible_and_a_constant(name, plain, keys, batch):
    model, params, state = plain
    objective = ATTACKING[name]()

    def total(params, inputs):
        delta = objective.prepare(keys, model, params, state, batch._replace(inputs=inputs))
        return jnp.sum(delta * jnp.cos(jnp.arange(delta.size, dtype=delta.dtype)).reshape(delta.shape)), delta

    (_, delta), slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, batch.inputs)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes))
    alone = jax.jit(objective.prepare, static_argnums=1)(keys, model, params, state, batch)
    np.testing.assert_allclose(delta, alone, atol=1e-6)
    assert np.abs(delta).max() <= RADIUS * (1 + 1e-6)
    assert np.abs(delta).max() > RADIUS / 2


@pytest.mark.parametrize("name", ATTACKING)
def test_gradients_reach_what_made_the_inputs(name, plain, keys, batch, x64):
    """The delta is held fixed and the inputs are not: bounds of an augmentation can be trained through the loss."""
    model, params, state = jax.tree.map(lambda x: x.astype(jnp.float64) if hasattr(x, "astype") else x, plain)
    objective = ATTACKING[name]()
    inputs = batch.inputs.astype(jnp.float64)
    direction = jnp.asarray(np.random.default_rng(9).standard_normal(inputs.shape))
    delta = 0.05 * jnp.sign(direction)

    def mean(amount):
        moved = batch._replace(inputs=inputs + amount * direction)
        return objective.losses(delta, keys, model, params, state, moved)[0].mean()

    slope = jax.grad(mean)(0.0)
    difference = (mean(1e-5) - mean(-1e-5)) / 2e-5
    assert float(slope) == pytest.approx(float(difference), rel=1e-6)
    assert abs(float(slope)) > 1e-3


@pytest.mark.parametrize("name", ATTACKING)
def test_the_attack_sees_running_statistics_unless_asked(name, normalized, keys, batch):
    model, params, state = normalized

    def delta(evaluated, **options):
        return ATTACKING[name](**options).prepare(keys, evaluated, params, state, batch)

    def fixed(mode):
        return model._replace(apply=lambda p, s, x, *, train: model.apply(p, s, x, train=mode))

    by_default, evaluating, in_training, training = jax.jit(
        lambda: (delta(model), delta(fixed(False)), delta(model, attack_in_training_mode=True), delta(fixed(True)))
    )()
    np.testing.assert_array_equal(by_default, evaluating)
    np.testing.assert_array_equal(in_training, training)
    assert not np.allclose(by_default, in_training, atol=1e-3)


@pytest.mark.parametrize("name", ROWS)
def test_statistics_pass_through_every_forward_pass_in_turn(name, normalized, keys, batch):
    model, params, state = normalized
    prepared = given(name, params, 0.1 * jnp.ones_like(batch.inputs))
    _, (found, _) = ROWS[name]().losses(prepared, keys, model, params, state, batch)
    expected = state
    clean, attacked = batch.inputs, batch.inputs + 0.1
    passes = {name: [clean] for name in ("cross_entropy", "foar")}
    passes |= {name: [attacked] for name in ("adversarial", "awp", "soar")}
    for images in passes.get(name, [clean, attacked]):
        expected = model.apply(params, expected, images, train=True)[1]
    np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-6)
    backwards = model.apply(params, expected, batch.inputs, train=True)[1]
    assert not np.allclose(found["mean"], backwards["mean"], rtol=1e-4)


@pytest.mark.parametrize("name", ROWS)
def test_one_trace(name, plain, keys, batch):
    model, params, state = plain
    objective = ROWS[name]()
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def losses(prepared, params, batch):
        return objective.losses(prepared, keys, model, params, state, batch)[0]

    prepared = given(name, params, jnp.zeros_like(batch.inputs))
    once = losses(prepared, params, batch)
    again = losses(prepared, jax.tree.map(lambda x: 2 * x, params), batch)
    assert not np.allclose(once, again)
    eager = objective.losses(prepared, keys, model, params, state, batch)[0]
    np.testing.assert_allclose(once, eager, rtol=1e-5)
