"""The reference solutions by convex programming."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import SVC

from jaxrobust import geometry
from jaxrobust.implicit_bias import margin, max_margin

pytest.importorskip("cvxpy")
NORMS = {
    "l1": geometry.l1(),
    "l2": geometry.l2(),
    "linf": geometry.linf(),
    "l1.5": geometry.lp(1.5),
    "fourier_l1": geometry.fourier_l1(),
    "fourier_linf": geometry.fourier_linf(geometry.contrast_sensitivity(8.0)),
}


def problem(seed=0, count=8):
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((count, 3, 5, 1))
    return inputs, np.where(np.tensordot(inputs, generator.standard_normal((3, 5, 1)), 3) > 0, 1, -1)


def test_by_hand():
    inputs, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([1, 0])
    found = max_margin(inputs, labels, geometry.l1())
    np.testing.assert_allclose(found.weights, [0.5, -1.0], atol=1e-6)
    assert found.margin == pytest.approx(2 / 3, rel=1e-6)
    # In l-infinity any first weight between 1/2 and 1 will do: the second decides.
    assert max_margin(inputs, labels, geometry.linf()).margin == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("name", NORMS)
def test_nothing_beats_it(name):
    norm = NORMS[name]
    inputs, labels = problem()
    found = max_margin(inputs, labels, norm)
    assert float(margin(jnp.asarray(found.weights, jnp.float32), jnp.asarray(inputs, jnp.float32), labels, norm)) == (
        pytest.approx(found.margin, rel=1e-4)
    )
    assert found.margin <= found.bound * (1 + 1e-9)
    assert found.bound == pytest.approx(found.margin, rel=1e-5)
    generator = np.random.default_rng(1)
    for scale in (0.01, 0.1, 1.0):
        for _ in range(30):
            other = found.weights + scale * np.abs(found.weights).max() * generator.standard_normal(found.weights.shape)
            value = margin(jnp.asarray(other, jnp.float32), jnp.asarray(inputs, jnp.float32), labels, norm)
            assert float(value) <= found.margin * (1 + 1e-5)
    # The best in another norm is worse in this one.
    other = NORMS["l1" if name != "l1" else "linf"]
    weights = jnp.asarray(max_margin(inputs, labels, other).weights, jnp.float32)
    assert float(margin(weights, jnp.asarray(inputs, jnp.float32), labels, norm)) < 0.99 * found.margin


def test_a_support_vector_machine_agrees():
    """Without an offset: every example comes with its opposite."""
    inputs, labels = problem()
    flat = inputs.reshape(len(inputs), -1)
    machine = SVC(kernel="linear", C=1e8, tol=1e-8).fit(np.r_[flat, -flat], np.r_[labels, -labels])
    found = max_margin(inputs, labels, geometry.l2())
    assert 1 / np.linalg.norm(machine.coef_) == pytest.approx(found.margin, rel=1e-4)
    np.testing.assert_allclose(machine.coef_.reshape(found.weights.shape), found.weights, atol=1e-3)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="linearly separable"):
        max_margin(np.array([[1.0], [1.0]]), np.array([1, -1]), geometry.l2())
    with pytest.raises(ValueError, match="p-norm of a linear transform, got spectral"):
        max_margin(np.ones((2, 2)), np.array([1, 1]), geometry.spectral())
