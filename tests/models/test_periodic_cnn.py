"""The corrector: a convolution around the edges, made of products and shifts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import models

KEY = jax.random.key(0)


def made(dimensions, points=8, **options):
    model = models.periodic_cnn(dimensions, **options)
    state = jax.random.normal(jax.random.key(1), (3, *(points,) * dimensions))
    params, rest = model.init(KEY, state)
    params = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape) / 3, params)
    return lambda p, u: model.apply(p, rest, u, train=True)[0], params, state


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("widths", [(), (4,), (4, 2)])
def test_it_is_the_convolution_of_a_padded_field(dimensions, widths):
    """Layers that widen shift their inputs, layers that narrow shift their products: both are one convolution."""
    apply, params, state = made(dimensions, widths=widths, kernel=3)
    x, axes = state[..., None], "HW"[:dimensions]
    for number in range(len(widths) + 1):
        layer = params[f"PeriodicConvolution_{number}"]
        kernel = layer["kernel"].reshape(*(3,) * dimensions, *layer["kernel"].shape[1:])
        # A shift by s brings what lies s before: the kernel is turned around.
        kernel = jnp.flip(kernel, tuple(range(dimensions)))
        padded = jnp.pad(x, ((0, 0), *((1, 1),) * dimensions, (0, 0)), mode="wrap")
        form = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
        x = jax.lax.conv_general_dilated(padded, kernel, (1,) * dimensions, "VALID", dimension_numbers=form)
        x = x + layer["bias"]
        x = jnp.tanh(x) if number < len(widths) else x
    np.testing.assert_allclose(apply(params, state), x[..., 0], atol=1e-5)
    assert not np.allclose(apply(params, state), jnp.roll(x[..., 0], 1, 1), atol=1e-2)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_shifted_state_has_a_shifted_correction(dimensions):
    apply, params, state = made(dimensions)
    for axis in range(1, 1 + dimensions):
        moved = apply(params, jnp.roll(state, 3, axis))
        np.testing.assert_allclose(moved, jnp.roll(apply(params, state), 3, axis), atol=1e-5)
        assert np.abs(moved - apply(params, state)).max() > 1e-2


def test_it_starts_as_nothing_and_learns_from_the_first_step():
    model = models.periodic_cnn()
    state = jax.random.normal(KEY, (2, 24))
    params, rest = model.init(KEY, state)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 511
    np.testing.assert_array_equal(model.apply(params, rest, state, train=False)[0], 0.0)
    slopes = jax.grad(lambda p: jnp.sum(model.apply(p, rest, state, train=True)[0] * jnp.sin(state)))(params)
    assert np.abs(slopes["PeriodicConvolution_1"]["kernel"]).max() > 0.1


def test_many_weights_at_once_are_products_and_no_grouped_convolutions():
    apply, params, state = made(1)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    text = jax.jit(jax.vmap(apply, (0, None))).lower(many, state).as_text()
    assert "convolution" not in text
    assert "dot_general" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dimensions": 3}, "dimensions must be 1 or 2, got 3"),
        ({"kernel": 4}, "kernel must be odd and positive, got 4"),
        ({"widths": (4, 0)}, r"widths\[1\] must be positive, got 0"),
    ],
)
def test_bad_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        models.periodic_cnn(**options)
    with pytest.raises(ValueError, match=r"inputs must be \[batch, \*places\] of 1 dimensions, got shape"):
        models.periodic_cnn(1).init(KEY, jnp.zeros((1, 4, 4)))
