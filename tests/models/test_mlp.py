"""The multilayer perceptron, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import models


@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh])
def test_logits_are_those_of_the_formula(activation):
    model = models.mlp(3, widths=(5, 4), activation=activation)
    images = jax.random.normal(jax.random.key(0), (2, 3, 2, 1))
    params, state = model.init(jax.random.key(1), images)
    x = np.asarray(images, np.float64).reshape(2, 6)
    for i in range(3):
        x = x if i == 0 else np.asarray(activation(x.astype(np.float32)), np.float64)
        x = x @ np.asarray(params[f"Dense_{i}"]["kernel"], np.float64) + np.asarray(params[f"Dense_{i}"]["bias"])
    logits = model.apply(params, state, images, train=False)[0]
    np.testing.assert_allclose(logits, x, atol=1e-5)
    other = models.mlp(3, widths=(5, 4), activation=lambda x: x)
    assert np.abs(other.apply(params, state, images, train=False)[0] - x).max() > 0.01


def test_no_widths_give_a_linear_classifier():
    params, _ = models.mlp(10, widths=()).init(jax.random.key(0), jnp.zeros([1, 8, 8, 1]))
    assert jax.tree.map(jnp.shape, params) == {"Dense_0": {"bias": (10,), "kernel": (64, 10)}}


def test_a_width_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"widths\[1\] must be positive, got 0"):
        models.mlp(10, widths=(4, 0))
