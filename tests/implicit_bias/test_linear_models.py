"""Linear functions in three parametrizations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.implicit_bias import deep_linear, linear, linear_convolutional, linear_map

MODELS = {
    "linear": linear(),
    "deep": deep_linear((5, 7)),
    "convolutional": linear_convolutional(2),
    "deep convolutional": linear_convolutional(4),
}
every = pytest.mark.parametrize("name", MODELS)
INPUTS = jax.random.normal(jax.random.key(0), (6, 3, 4, 2))


def filled(model):
    """Parameters without zeros."""
    params, state = model.init(jax.random.key(1), INPUTS)
    keys = iter(jax.random.split(jax.random.key(2), 10))
    return jax.tree.map(lambda leaf: leaf + jax.random.normal(next(keys), leaf.shape), params), state


@every
def test_scores_are_inner_products_with_the_linear_map(name):
    model = MODELS[name]
    params, state = filled(model)

    def logits_fn(x):
        return model.apply(params, state, x, train=False)[0]

    weights = linear_map(logits_fn, INPUTS.shape[1:])
    assert weights.shape == INPUTS.shape[1:]
    logits = logits_fn(INPUTS)
    scores = np.tensordot(np.asarray(INPUTS, np.float64), np.asarray(weights, np.float64), 3)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], scores, rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(logits[:, 0], -logits[:, 1])
    assert not np.allclose(logits[:, 1] - logits[:, 0], np.roll(scores, 1), atol=1e-1)


@every
def test_cross_entropy_is_the_logistic_loss(name):
    model = MODELS[name]
    params, state = filled(model)
    logits, _ = model.apply(params, state, INPUTS, train=True)
    labels = jnp.array([0, 1, 0, 1, 1, 0])
    found = -jax.nn.log_softmax(logits)[jnp.arange(6), labels]
    signed = np.where(labels == 1, 1.0, -1.0) * np.asarray(logits[:, 1] - logits[:, 0])
    np.testing.assert_allclose(found, np.log1p(np.exp(-signed)), rtol=1e-4, atol=1e-6)


@every
def test_the_start_is_silent_and_can_learn(name):
    """The last layer starts at 0, and its gradient does not."""
    model = MODELS[name]
    params, state = model.init(jax.random.key(1), INPUTS)
    logits, _ = model.apply(params, state, INPUTS, train=True)
    np.testing.assert_array_equal(np.abs(logits), 0)
    slope = jax.grad(lambda p: jnp.sum(model.apply(p, state, INPUTS, train=True)[0][:, 1]))(params)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(slope))
    hidden = jax.tree.leaves(params)[:-1]
    assert all(float(jnp.linalg.norm(leaf)) == pytest.approx(1, rel=1e-5) for leaf in hidden)


def test_the_convolution_by_its_definition():
    """h'[n] = d^(-1/2) sum_k w[k] h[n + k], both taken modulo the sides; then an inner product."""
    model = linear_convolutional(2)
    params, state = filled(model)
    filter_, last = (np.asarray(leaf, np.float64) for leaf in params)
    images = np.asarray(INPUTS, np.float64)
    height, width = images.shape[1:3]

    def score(shift):
        hidden = np.zeros_like(images)
        for i in range(height):
            for j in range(width):
                hidden += filter_[i, j] * np.roll(images, (shift * i, shift * j), (1, 2))
        return np.tensordot(hidden / np.sqrt(height * width), last, 3)

    logits, _ = model.apply(params, state, INPUTS, train=False)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], score(-1), rtol=1e-4, atol=1e-4)
    # A convolution in place of the cross-correlation is another function.
    assert not np.allclose(logits[:, 1] - logits[:, 0], score(1), atol=1e-2)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="depth must be at least 2, got 1"):
        linear_convolutional(1)
    with pytest.raises(ValueError, match=r"widths must be at least one number from 1 on, got \(\)"):
        deep_linear(())
    with pytest.raises(ValueError, match=r"got \(3, 0\)"):
        deep_linear((3, 0))
