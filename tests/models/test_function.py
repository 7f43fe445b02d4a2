"""Plain functions as a model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust import models


def linear_init(key, inputs):
    return {"weight": jax.random.normal(key, (inputs.shape[-1], 2))}


def linear(params, inputs):
    return inputs @ params["weight"]


def test_a_plain_function_keeps_its_parameters_and_has_no_state():
    model, inputs = models.function(linear_init, linear), jnp.ones([3, 4])
    params, state = model.init(jax.random.key(0), inputs)
    np.testing.assert_array_equal(params["weight"], linear_init(jax.random.key(0), inputs)["weight"])
    for train in (True, False):
        logits, after = model.apply(params, state, inputs, train=train)
        np.testing.assert_array_equal(logits, linear(params, inputs))
        assert after == state == {}
    assert model.over is None


@pytest.mark.parametrize("rate", [0.1, -0.1])
def test_a_step_of_sgd_is_the_one_worked_by_hand(rate):
    """With weights 0 both classes have probability 1/2: the gradient is x (1/2 - onehot)."""
    model, optimizer = models.function(lambda key, x: jnp.zeros([2, 2]), lambda params, x: x @ params), optax.sgd(rate)
    inputs, labels = jnp.array([[1.0, 2.0]]), jnp.array([0])
    params, state = model.init(jax.random.key(0), inputs)

    def loss(params):
        logits, _ = model.apply(params, state, inputs, train=True)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params))
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after, rate * np.array([[0.5, -0.5], [1.0, -1.0]]), rtol=1e-6)
    assert (loss(after) < loss(params)) == (rate > 0)


def test_what_is_no_function_is_refused():
    with pytest.raises(ValueError, match="init must be a function, got 3"):
        models.function(3, linear)
    with pytest.raises(ValueError, match="apply must be a function, got None"):
        models.function(linear_init, None)
