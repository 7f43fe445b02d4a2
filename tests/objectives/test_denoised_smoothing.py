"""Denoised smoothing: by hand, its gradient from queries in three places, and what a query without an answer costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxrobust import backprop, models, objectives, zeroth_order
from jaxrobust.typing import Batch, Estimator

BATCH, SIDE, CLASSES, STABILITY = 6, 8, 10, 30.0
KEY = jax.random.key(3)
KEYS = jax.random.split(jax.random.key(0), BATCH)
HIDDEN = np.asarray(np.random.default_rng(0).standard_normal((SIDE * SIDE, 24)) / 4, np.float32)
OUT = np.asarray(np.random.default_rng(1).standard_normal((24, CLASSES)), np.float32)


def classify(image):
    """A network of ONE image, for JAX."""
    return jax.nn.log_softmax(jax.nn.relu(image.reshape(-1) @ HIDDEN) @ OUT)


def answer(images):
    """The same in NumPy, of many."""
    logits = np.maximum(images.reshape(len(images), -1) @ HIDDEN, 0) @ OUT
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def box():
    return zeroth_order.black_box(answer, (CLASSES,), batched=True)


@pytest.fixture(scope="module")
def images():
    inputs = jax.random.uniform(jax.random.key(1), (BATCH, SIDE, SIDE, 1))
    return Batch(inputs, jnp.zeros(BATCH, jnp.int32), jnp.arange(BATCH), jnp.ones(BATCH))


def off_its_start(model):
    """A denoiser that is no identity any more: (model, params)."""
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1)))
    flat, unravel = ravel_pytree(params)
    return model, unravel(flat + 0.05 * jax.random.normal(jax.random.key(2), flat.shape))


@pytest.fixture(scope="module")
def denoiser():
    """A denoiser of 76 parameters."""
    return off_its_start(models.denoiser(2, 4, batch_norm=False))


@pytest.fixture(scope="module")
def exact(images, denoiser):
    return gradient(classify, backprop(), denoiser, images)[0]


def gradient(classifier, estimator, denoiser, batch, prepared=None):
    """The gradient of the mean loss in the denoiser's weights, `[d]`, and the metrics; the second term weighs much."""
    model, params = denoiser
    objective = objectives.denoised_smoothing(classifier, stability=STABILITY)

    @jax.jit
    def found(params):
        shared = objective.prepare(KEYS, model, params, {}, batch) if prepared is None else prepared
        value_fn = lambda point: objective.losses(shared, KEYS, model, point, {}, batch)  # noqa: E731
        estimate = estimator(KEY, value_fn, params, has_aux=True)
        return ravel_pytree(estimate.gradient)[0], estimate.aux[1]

    return found(params)


def cosine(one, two):
    return float(one @ two / jnp.linalg.norm(one) / jnp.linalg.norm(two))


def error(one, two):
    """Relative to the second."""
    return float(jnp.linalg.norm(one - two) / jnp.linalg.norm(two))


def scale():
    return models.function(lambda key, x: jnp.float32(1), lambda params, x: params * x)


def test_losses_by_hand(batch, keys):
    weights = np.asarray(np.random.default_rng(5).standard_normal((4, 3)), np.float32)
    objective = objectives.denoised_smoothing(lambda image: image.reshape(-1) @ weights, 0.5, stability=2.0)
    prepared = objective.prepare(keys, scale(), 0.8, {}, batch)
    losses, (_, metrics) = objective.losses(prepared, keys, scale(), 0.8, {}, batch)
    x, n = (np.asarray(part, np.float64).reshape(5, 4) for part in (batch.inputs, prepared.noise))
    target = (x @ weights).argmax(1)
    logits = 0.8 * (x + n) @ weights
    entropy = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), target]
    squares = ((0.8 * (x + n) - x) ** 2).sum(1)
    np.testing.assert_allclose(losses, squares + 2 * entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["denoising_error"], squares, rtol=1e-5)
    np.testing.assert_array_equal(metrics["agreement"], logits.argmax(1) == target)
    assert np.all(metrics["answered"] == 1)
    # The labels have no part in it.
    other = batch._replace(targets=(batch.targets + 1) % 3)
    np.testing.assert_array_equal(objective.losses(prepared, keys, scale(), 0.8, {}, other)[0], losses)


def test_noise_is_each_examples_own_and_has_its_deviation(images):
    objective, model = objectives.denoised_smoothing(classify, 0.25), scale()
    noise = objective.prepare(KEYS, model, 1.0, {}, images).noise
    part = Batch(images.inputs[2:], images.targets[2:], images.index[2:], images.weight[2:])
    np.testing.assert_array_equal(objective.prepare(KEYS[2:], model, 1.0, {}, part).noise, noise[2:])
    assert not np.array_equal(noise[0], noise[1])
    squares = float(jnp.mean((noise / 0.25) ** 2))
    # The variance of a mean of n squares is 2 / n.
    assert abs(squares - 1) < 4 * np.sqrt(2 / noise.size)
    doubled = objectives.denoised_smoothing(classify, 0.5).prepare(KEYS, model, 1.0, {}, images).noise
    np.testing.assert_allclose(doubled, 2 * noise, rtol=1e-6)


def test_the_loss_is_linear_in_the_weight_of_stability(images):
    found = []
    for weight in (0.0, 1.0, 3.0):
        objective = objectives.denoised_smoothing(classify, stability=weight)
        prepared = objective.prepare(KEYS, scale(), 1.0, {}, images)
        found.append(objective.losses(prepared, KEYS, scale(), 1.0, {}, images)[0])
    np.testing.assert_allclose(found[0], jnp.sum(prepared.noise**2, (1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(found[2] - found[0], 3 * (found[1] - found[0]), rtol=1e-3)


@pytest.mark.parametrize(("stability", "asked"), [(0.0, 0), (1.0, 3 * BATCH)])
def test_a_classifier_without_weight_is_not_asked(images, stability, asked):
    answering = box()
    objective = objectives.denoised_smoothing(answering, stability=stability)
    prepared = objective.prepare(KEYS, scale(), 1.0, {}, images)
    _, (_, metrics) = objective.losses(prepared, KEYS, scale(), 1.0, {}, images)
    np.testing.assert_allclose(metrics["denoising_error"], jnp.sum(prepared.noise**2, (1, 2, 3)), rtol=1e-4)
    assert (answering.queries, "agreement" in metrics) == (asked, asked > 0)


def averaged(estimator):
    """A mistake of released code: a mean over coordinates in place of their sum."""

    def estimate(key, value_fn, params, state):
        found = estimator.estimate(key, value_fn, params, state)
        return found._replace(gradient=jax.tree.map(lambda leaf: leaf / leaf.size, found.gradient))

    return Estimator(estimator.init, estimate)


def test_estimates_at_the_interface_give_the_gradient_of_backprop(images):
    denoiser = off_its_start(models.dense_denoiser((32,)))  # the digits' own
    exact, _ = gradient(classify, backprop(), denoiser, images)
    asked = box()
    interface = zeroth_order.differentiable(asked, zeroth_order.coordinate(5e-3))
    found, metrics = gradient(interface, backprop(), denoiser, images)
    assert cosine(found, exact) >= 0.99
    assert error(found, exact) < 0.05
    assert metrics["answered"].min() == 1
    # Twice before the losses, once in them, and on the way back once more and once for each of the 64 numbers.
    assert asked.queries == BATCH * (2 + 1 + 1 + SIDE * SIDE)
    mistaken = zeroth_order.differentiable(box(), averaged(zeroth_order.coordinate(5e-3)))
    assert error(gradient(mistaken, backprop(), denoiser, images)[0], exact) > 0.2


@pytest.mark.slow
def test_estimates_of_the_weights_give_the_gradient_of_backprop(images, denoiser, exact):
    found, _ = gradient(box(), zeroth_order.coordinate(2e-3, central=True), denoiser, images)
    assert cosine(found, exact) >= 0.99
    assert error(found, exact) < 0.05


def test_noise_drawn_anew_in_each_query_is_no_gradient(images, denoiser, exact):
    model, params = denoiser
    objective = objectives.denoised_smoothing(classify, stability=STABILITY)

    def redrawn(point):
        """The losses with noise that depends on the query."""
        bits = jax.lax.bitcast_convert_type(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(point)), jnp.uint32)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, bits))(KEYS)
        return objective.losses(objective.prepare(keys, model, point, {}, images), keys, model, point, {}, images)[0]

    estimator = zeroth_order.random_directions(200)
    shared, _ = gradient(classify, estimator, denoiser, images)
    found = ravel_pytree(jax.jit(lambda p: estimator(KEY, redrawn, p).gradient)(params))[0]
    # Of 200 directions in 76 dimensions: the root of 200 / 277, less four of its deviations.
    assert cosine(shared, exact) > 0.7
    assert abs(cosine(found, exact)) < 0.5
    assert jnp.linalg.norm(found) > 5 * jnp.linalg.norm(shared)


class Failing:
    """The network's answers, but none for the denoised image of one example, after a number of calls."""

    def __init__(self, example, after):
        self.place, self.after, self.calls = 2 + example, after, 0

    def __call__(self, images):
        found = answer(images)
        self.calls += 1
        if self.calls > self.after:
            found[np.abs(images[:, 0, 0, 0] - self.place) < 0.1] = np.nan
        return found


def marking(denoiser):
    """The denoiser, whose images have their example's number in the first pixel, so that they can be told apart."""
    model, params = denoiser

    def apply(params, state, inputs, *, train):
        found, state = model.apply(params, state, inputs, train=train)
        marks = jnp.arange(len(inputs), dtype=found.dtype)
        return found.at[:, 0, 0, 0].set(2 + marks), state

    return model._replace(apply=apply), params


def failing(example, after):
    return zeroth_order.black_box(Failing(example, after), (CLASSES,), batched=True)


@pytest.mark.parametrize("where", ["interface", pytest.param("weights", marks=pytest.mark.slow)])
def test_an_example_without_answers_harms_no_other(images, denoiser, where):
    marked = marking(denoiser)

    def asked(box):
        interface = zeroth_order.differentiable(box, zeroth_order.coordinate(5e-3))
        return (interface, backprop()) if where == "interface" else (box, zeroth_order.coordinate(2e-3))

    # Never an answer for the denoised example 4: its second term is gone, all others are as they were.
    found, metrics = gradient(*asked(failing(4, 0)), marked, images)
    model, params = marked
    prepared = objectives.denoised_smoothing(classify).prepare(KEYS, model, params, {}, images)
    without = prepared._replace(
        answered=prepared.answered.at[4].set(False), stability=prepared.stability.at[4].set(0.0)
    )
    exact, _ = gradient(classify, backprop(), marked, images, without)
    whole, _ = gradient(classify, backprop(), marked, images, prepared)
    np.testing.assert_array_equal(metrics["answered"], [1, 1, 1, 1, 0, 1])
    assert error(found, exact) < 0.05
    assert error(whole, exact) > 0.1


def test_a_query_that_fails_later_moves_no_estimate(images, denoiser):
    marked = marking(denoiser)
    model, params = marked
    asked = failing(4, 3)
    # Both questions of `prepare` and the first value are answered; each quotient fails for example 4.
    found, _ = gradient(asked, zeroth_order.coordinate(2e-3), marked, images)
    assert len(asked.failures) == 76
    prepared = objectives.denoised_smoothing(classify).prepare(KEYS, model, params, {}, images)
    without = prepared._replace(answered=prepared.answered.at[4].set(False))
    exact, _ = gradient(classify, backprop(), marked, images, without)
    assert error(found, exact) < 0.05
    # With nothing to stand in, the term that is missing would look like a slope.
    nothing = prepared._replace(stability=jnp.zeros(BATCH))
    wrong, _ = gradient(failing(4, 1), zeroth_order.coordinate(2e-3), marked, images, nothing)
    assert error(wrong, exact) > 1


def test_it_is_the_same_in_a_compiled_step_and_keeps_dtypes(images, denoiser):
    model, params = denoiser
    objective = objectives.denoised_smoothing(classify)
    traces = []

    def both(params, batch):
        traces.append(1)
        prepared = objective.prepare(KEYS, model, params, {}, batch)
        return objective.losses(prepared, KEYS, model, params, {}, batch)[0]

    step = jax.jit(both)
    compiled = [step(params, images), step(params, images)]
    assert len(traces) == 1
    np.testing.assert_allclose(compiled[1], both(params, images), rtol=1e-4)
    assert (compiled[0].dtype, compiled[0].shape) == (jnp.float32, (BATCH,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive, got 0.0"),
        ({"stability": -1.0}, "stability must not be negative, got -1.0"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        objectives.denoised_smoothing(classify, **options)
