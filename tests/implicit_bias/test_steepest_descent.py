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


@pytest.mark.parametrize("name", BY_HAND)
def test_a_normalized_step_has_the_length_asked_for(name):
    norm, expected = BY_HAND[name]
    found = update(steepest_descent(norm, 0.1, normalized=True))
    vector = jnp.concatenate([found["b"], found["w"][:, 0]])
    assert float(norm.norm(vector)) == pytest.approx(0.1, rel=1e-6)
    plain = np.concatenate([expected["b"], np.ravel(expected["w"])])
    np.testing.assert_allclose(vector / np.linalg.norm(vector), plain / np.linalg.norm(plain), rtol=1e-5)
    scaled = update(steepest_descent(norm, 0.1, normalized=True), jax.tree.map(lambda leaf: 1e-6 * leaf, GRADIENT))
    np.testing.assert_allclose(scaled["b"], found["b"], rtol=1e-5)
    # The plain step does shrink with its gradient.
    assert not np.allclose(update(steepest_descent(norm, 0.1), scaled)["b"], found["b"], rtol=0.1)


def test_per_leaf_by_hand():
    """Spectral: every singular value of each matrix's step is the sum of all nuclear norms."""
    gradient = {"one": jnp.array([[3.0, 0.0], [0.0, 1.0]]), "two": jnp.array([[0.0, -2.0]])}
    found = update(steepest_descent(geometry.spectral(), 0.5, per_leaf=True), gradient)
    np.testing.assert_allclose(found["one"], [[-3.0, 0.0], [0.0, -3.0]], atol=1e-5)
    np.testing.assert_allclose(found["two"], [[0.0, 3.0]], atol=1e-5)
    normalized = update(steepest_descent(geometry.spectral(), 0.5, per_leaf=True, normalized=True), gradient)
    np.testing.assert_allclose(normalized["one"], [[-0.5, 0.0], [0.0, -0.5]], atol=1e-6)
    # As one vector there would be a single direction, the gradient's own: that is refused.
    with pytest.raises(ValueError, match="spectral looks at each leaf's shape: take per_leaf=True"):
        update(steepest_descent(geometry.spectral(), 0.5), gradient)
    with pytest.raises(ValueError, match=r"a Fourier norm needs arrays \[height, width, ...\], got shape \(2,\)"):
        update(steepest_descent(geometry.fourier_l1(), 0.5, per_leaf=True), {"one": gradient["one"], "b": jnp.ones(2)})


def test_spectral_in_half_precision_and_of_scalars():
    gradient = {"half": jnp.eye(2, dtype=jnp.bfloat16), "scalar": jnp.float32(-3.0)}
    found = update(steepest_descent(geometry.spectral(), 1.0, per_leaf=True, normalized=True), gradient)
    assert found["half"].dtype == jnp.bfloat16
    np.testing.assert_allclose(found["half"].astype(jnp.float32), -jnp.eye(2), atol=1e-2)
    assert float(found["scalar"]) == pytest.approx(1.0)
    plain = update(steepest_descent(geometry.spectral(), 1.0, per_leaf=True), gradient)
    assert plain["half"].dtype == jnp.bfloat16
    assert float(plain["scalar"]) == pytest.approx(5.0, rel=1e-2)


def test_one_array_keeps_its_shape():
    """The Fourier norms look at height and width."""
    image = jax.random.normal(jax.random.key(0), (4, 4, 1))
    norm = geometry.fourier_linf()
    found = update(steepest_descent(norm, 0.5, normalized=True), {"image": image})["image"]
    np.testing.assert_allclose(found, -0.5 * norm.steepest(image), atol=1e-6)
    flat = -0.5 * norm.steepest(image.reshape(16, 1, 1)).reshape(4, 4, 1)
    assert not np.allclose(found, flat, atol=1e-2)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_line_search_behind(name):
    """With optax's own backtracking no step raises the loss; a fixed step of the first length does."""
    norm, _ = BY_HAND[name]
    scale = jnp.array([1.0, 10.0, 100.0])
    start = jnp.array([1.0, -1.0, 1.0])

    def loss(params):
        return 0.5 * jnp.sum(scale * params**2)

    def descend(optimizer, steps):
        params, state, found = start, optimizer.init(start), []
        for _ in range(steps):
            value, slope = jax.value_and_grad(loss)(params)
            found.append(float(value))
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(slope, state, params, value=value, grad=slope, value_fn=loss)
                params = optax.apply_updates(params, updates)
        return np.array([*found, float(loss(params))])

    searched = descend(
        optax.chain(steepest_descent(norm, 1.0), optax.scale_by_backtracking_linesearch(30, decrease_factor=0.5)), 30
    )
    assert np.all(np.diff(searched) <= 0)
    assert searched[-1] < 0.2 * searched[0]
    assert descend(steepest_descent(norm, 1.0), 1)[-1] > searched[0]
