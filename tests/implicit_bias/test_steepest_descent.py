"""Steepest descent in several norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust import geometry
from jaxrobust.implicit_bias import steepest_descent

GRADIENT = {"b": jnp.array([1.0, -3.0]), "w": jnp.array([[2.0], [0.0]])}
BY_HAND = {
    "l2": (geometry.l2(), {"b": [-0.1, 0.3], "w": [[-0.2], [0.0]]}),
    "linf": (geometry.linf(), {"b": [-0.6, 0.6], "w": [[-0.6], [0.0]]}),
    "l1": (geometry.l1(), {"b": [0.0, 0.3], "w": [[0.0], [0.0]]}),
}


def update(optimizer, gradient=GRADIENT):
    return optimizer.update(gradient, optimizer.init(gradient))[0]


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    norm, expected = BY_HAND[name]
    found = update(steepest_descent(norm, 0.1))
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-6),
        found,
        jax.tree.map(jnp.array, expected, is_leaf=lambda x: isinstance(x, list)),
    )
    # The direction alone, without the dual norm, is another step.
    assert not np.allclose(found["b"], -0.1 * norm.steepest(jnp.array([1.0, -3.0, 2.0, 0.0]))[:2])


@pytest.mark.parametrize("name", BY_HAND)
def test_the_step_is_the_minimizer_of_its_model(name):
    norm, _ = BY_HAND[name]
    g = jax.random.normal(jax.random.key(0), (6,))
    step = update(steepest_descent(norm, 1.0), g)

    def model(d):
        return g @ d + 0.5 * norm.norm(d) ** 2

    assert model(step) == pytest.approx(float(-0.5 * norm.dual_norm(g) ** 2), rel=1e-5)
    others = step + 0.3 * jax.random.normal(jax.random.key(1), (200, 6))
    assert np.all(jax.vmap(model)(others) >= model(step))
    # Steps of twice the length or the wrong sign would be caught.
    assert model(2 * step) > model(step) + 1e-3
    assert model(-step) > model(step) + 1e-3


def test_l2_is_gradient_descent():
    schedule = optax.linear_schedule(0.5, 0.1, 3)
    for rate in (0.3, schedule):
        ours, theirs = steepest_descent(geometry.l2(), rate), optax.sgd(rate)
        state, other = ours.init(GRADIENT), theirs.init(GRADIENT)
        for _ in range(4):
            found, state = ours.update(GRADIENT, state, value=1.0)
            expected, other = theirs.update(GRADIENT, other)
            jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=5e-7), found, expected)


def test_zero_gradient_and_jit_and_dtypes():
    optimizer = steepest_descent(geometry.l2(), 0.1)
    zeros = jax.tree.map(jnp.zeros_like, GRADIENT)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0 * leaf), update(optimizer, zeros))
    jitted = jax.jit(lambda g: update(optimizer, g))(GRADIENT)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-6), jitted, update(optimizer))
    mixed = {"half": jnp.ones(2, jnp.bfloat16), "full": jnp.ones(2)}
    with jax.numpy_dtype_promotion("standard"):
        found = update(optimizer, mixed)
    assert (found["half"].dtype, found["full"].dtype) == (jnp.bfloat16, jnp.float32)


def test_bad_learning_rate_is_refused():
    with pytest.raises(ValueError, match=r"learning_rate must be positive, got -0\.1"):
        steepest_descent(geometry.l2(), -0.1)
