"""The denoiser: the identity at first, its published size, how far it sees, and what batch norm couples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import models

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))


def moved(model, images=IMAGES, size=0.1):
    """Parameters off their start, where the last kernel is 0."""
    params, state = model.init(KEY, images)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [leaf + size * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return structure.unflatten(noisy), state


def test_a_chain_of_two_by_hand():
    params, _ = models.denoiser(2, 1).init(KEY, IMAGES)
    assert {name: sorted(layer) for name, layer in params.items()} == {
        "Conv_0": ["bias", "kernel"],
        "Conv_1": ["kernel"],
    }
    center = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    params = {"Conv_0": {"kernel": 2 * center, "bias": jnp.array([-0.5])}, "Conv_1": {"kernel": 0.5 * center}}
    found, _ = models.denoiser(2, 1).apply(params, {}, IMAGES, train=False)
    np.testing.assert_allclose(found, IMAGES - 0.5 * np.maximum(2 * IMAGES - 0.5, 0), rtol=1e-6)
    assert np.max(np.abs(found - IMAGES)) > 0.5


@pytest.mark.parametrize("batch_norm", [False, True])
def test_it_begins_as_the_identity_and_the_first_gradient_is_of_the_last_kernel(batch_norm):
    model = models.denoiser(3, 4, batch_norm=batch_norm)
    params, state = model.init(KEY, IMAGES)
    for train in (False, True):
        np.testing.assert_array_equal(model.apply(params, state, IMAGES, train=train)[0], IMAGES)
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, state, IMAGES, train=True)[0] ** 2))(params)
    assert float(jnp.linalg.norm(gradient["Conv_2"]["kernel"])) > 1
    assert not np.any(gradient["Conv_0"]["kernel"])


def test_the_published_size():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params, state = jax.eval_shape(models.denoiser().init, KEY, images)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 558_400
    assert len(jax.tree.leaves(state)) == 2 * 15
    params, state = jax.eval_shape(models.denoiser(batch_norm=False).init, KEY, images)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 558_400 - 15 * 64
    assert not jax.tree.leaves(state)


@pytest.mark.parametrize("depth", [2, 3])
def test_it_sees_as_many_pixels_as_it_says(depth):
    images = jax.random.uniform(jax.random.key(1), (1, 13, 13, 1))
    model = models.denoiser(depth, 4, batch_norm=False)
    params, state = moved(model, images)
    apart = model.apply(params, state, images.at[0, 6, 6].add(0.5), train=False)[0]
    reached = np.abs(apart - model.apply(params, state, images, train=False)[0])[0, ..., 0] > 0
    rows = np.flatnonzero(reached.any(1))
    assert (rows[0], rows[-1]) == (6 - depth, 6 + depth)


def test_kernels_are_orthogonal_and_keep_the_variance_through_a_rectifier():
    params, _ = models.denoiser(3, 8).init(KEY, IMAGES)
    kernel = params["Conv_1"]["kernel"].reshape(-1, 8)
    np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(8), atol=1e-5)


def test_a_dense_one_by_hand():
    model = models.dense_denoiser((1,))
    params, state = model.init(KEY, IMAGES)
    np.testing.assert_array_equal(model.apply(params, state, IMAGES, train=True)[0], IMAGES)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == {
        "Dense_0": {"bias": (1,), "kernel": (64, 1)},
        "Dense_1": {"bias": (64,), "kernel": (1, 64)},
    }
    first, last = {"bias": jnp.array([-30.0]), "kernel": jnp.ones((64, 1))}, jnp.arange(64.0)
    params = {"Dense_0": first, "Dense_1": {"bias": jnp.full(64, 0.5), "kernel": last[None]}}
    excess = np.maximum(np.asarray(IMAGES).sum((1, 2, 3)) - 30, 0)
    assert {True, False} == set((excess > 0).tolist())
    expected = IMAGES - excess[:, None, None, None] * last.reshape(8, 8, 1) - 0.5
    np.testing.assert_allclose(model.apply(params, state, IMAGES, train=False)[0], expected, rtol=1e-4, atol=1e-3)


def test_batch_norm_couples_a_batch_in_training_alone():
    other = IMAGES.at[1:].multiply(0.5)
    for batch_norm, train in ((True, True), (True, False), (False, True)):
        model = models.denoiser(3, 4, batch_norm=batch_norm)
        params, state = moved(model)
        first, second = (model.apply(params, state, images, train=train)[0][0] for images in (IMAGES, other))
        assert np.allclose(first, second, atol=1e-6) != (batch_norm and train)


@pytest.mark.parametrize(
    "model",
    [models.denoiser(3, 4, batch_norm=False, dtype=jnp.bfloat16), models.dense_denoiser((4,), dtype=jnp.bfloat16)],
    ids=["convolutions", "dense"],
)
def test_images_keep_their_precision(model):
    params, state = model.init(KEY, IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    found, _ = jax.jit(lambda p: model.apply(p, state, IMAGES, train=True))(params)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, IMAGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 8), "depth must be at least 2, got 1: one convolution from the image, one back to it"),
        ((3, 0), "features must be positive, got 0"),
    ],
)
def test_what_it_cannot_be_built_of_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.denoiser(*arguments)


@pytest.mark.parametrize(
    ("widths", "message"),
    [((), r"widths must name at least one hidden layer, got \(\)"), ((4, 0), r"widths\[1\] must be positive, got 0")],
)
def test_widths_of_nothing_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        models.dense_denoiser(widths)


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match=r"inputs must be \[batch, height, width, channel\], got shape \(4, 64\)"):
        models.denoiser(2, 1).init(KEY, IMAGES.reshape(4, 64))
