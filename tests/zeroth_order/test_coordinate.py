"""Coordinate-wise estimation: the errors that its formulae predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.zeroth_order import coordinate

KEY = jax.random.key(0)


def smooth(x):
    return jnp.sum(jnp.exp(0.3 * x) * jnp.sin(x + x[::-1]))


def error(value, x, **options):
    found = coordinate(**options)(KEY, value, x)
    return np.asarray(found.gradient - jax.grad(value)(x))


@pytest.mark.parametrize("smoothing", [0.5, 0.01])
def test_quadratic_error_is_half_the_diagonal(smoothing):
    with jax.enable_x64(True):
        root = jax.random.normal(KEY, (5, 5))
        hessian, x = root @ root.T, jnp.linspace(-1.0, 1.0, 5)

        def value(x):
            return 0.5 * x @ hessian @ x + jnp.sum(x)

        forward = error(value, x, smoothing=smoothing)
        np.testing.assert_allclose(forward, smoothing * jnp.diag(hessian) / 2, rtol=1e-9)
        assert np.abs(error(value, x, smoothing=smoothing, central=True)).max() < 1e-11
        # A quotient over the wrong step would be caught.
        assert not np.allclose(2 * forward, smoothing * jnp.diag(hessian) / 2)


@pytest.mark.parametrize(("central", "ratio"), [(False, 2), (True, 4)])
def test_halving_the_step_halves_or_quarters_the_error(central, ratio):
    with jax.enable_x64(True):
        x = jnp.linspace(0.1, 1.0, 6)
        errors = [np.abs(error(smooth, x, smoothing=mu, central=central)).max() for mu in (2e-3, 1e-3)]
        assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.01)
        assert errors[1] > 1e-9


def test_near_a_minimum_both_sides_are_needed():
    """There the gradient is short, and the bias mu f_ii / 2 is not: at the start both forms look right."""
    curvature = jnp.linspace(1.0, 20.0, 8)

    def value(x):
        return jnp.sum(curvature * x**2) + 0.1 * jnp.sum(x**4)

    def relative(x, central):
        return np.linalg.norm(error(value, x, smoothing=1e-2, central=central)) / np.linalg.norm(jax.grad(value)(x))

    far, near = jnp.linspace(-2.0, 1.0, 8), 1e-3 * jnp.linspace(-2.0, 1.0, 8)
    assert max(relative(far, False), relative(far, True), relative(near, True)) < 0.01
    # mu f_ii / 2 is mu times the curvature, longer than the gradient there.
    bias = 1e-2 * np.linalg.norm(curvature) / np.linalg.norm(jax.grad(value)(near))
    assert relative(near, False) == pytest.approx(bias, rel=0.01)
    assert bias > 1


@pytest.mark.parametrize("central", [False, True])
def test_chunks_do_not_matter(central):
    params = {"w": jax.random.normal(KEY, (5, 3)), "b": jnp.ones(4)}
    inputs = jax.random.normal(jax.random.key(1), (8, 5))

    def value(params):
        return jnp.tanh(inputs @ params["w"]).sum(1) * params["b"].sum()

    found = []
    for size in (1, 4, 15, 64):
        estimator = coordinate(central=central, chunk_size=size)
        found.append(jax.jit(lambda p, estimator=estimator: estimator(KEY, value, p).gradient)(params))
    # Rounding of values of order 10, over a step of 5e-3.
    bound = 4 * np.finfo(np.float32).eps * 10 / 5e-3
    for other in found[1:]:
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=bound), found[0], other)
    exact = jax.grad(lambda p: value(p).mean())(params)
    assert np.abs(exact["w"]).max() > 10 * bound


def test_one_bad_point_spoils_one_coordinate():
    def value(x):
        return jnp.sum(x) + jnp.where(x[1] > 1, jnp.nan, 0.0)

    gradient = coordinate()(KEY, value, jnp.ones(3)).gradient
    assert np.isnan(gradient).tolist() == [False, True, False]


def test_convolutions_are_never_grouped():
    image, kernels = jnp.ones((2, 6, 6, 3)), {"one": jnp.ones((3, 3, 3, 4)), "two": jnp.ones((3, 3, 4, 4))}

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def value(kernels):
        return jnp.tanh(convolve(jnp.tanh(convolve(image, kernels["one"])), kernels["two"])).mean((1, 2, 3))

    def flat(vector):
        return value({"one": vector[:108].reshape(3, 3, 3, 4), "two": vector[108:].reshape(3, 3, 4, 4)})

    def grouped(estimator, function, params):
        text = str(jax.make_jaxpr(lambda p: estimator(KEY, function, p).gradient)(params))
        counts = {word.split("=")[1] for word in text.split() if word.startswith("feature_group_count=")}
        return counts != {"1"}

    assert not grouped(coordinate(chunk_size=4), value, kernels)
    assert grouped(coordinate(chunk_size=4), flat, jnp.ones(252))
