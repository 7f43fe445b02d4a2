"""The projection on an l1 ball within [0, 1]: by hand, by its optimality, and the reference's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import geometry

SHARES = (0.0, 0.05, 0.5, 2.0, 8.0, 100.0)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def problem():
    """Clean images, some pixels at 0 or 1, and images to project: some far outside the box, some pixels equal."""
    rng = np.random.default_rng(0)
    clean = rng.uniform(0, 1, (40, 5, 4, 2))
    clean[:, 0], clean[:, 1, 0] = 0, 1
    moved = rng.standard_normal(clean.shape) * rng.choice([0.01, 0.3, 2], (40, 1, 1, 1))
    moved[:, 2] = 0.25
    moved[:, 3, 0] = 0
    return clean, clean + moved


def projected(clean, image, radius):
    return jax.jit(jax.vmap(geometry.project_l1_box, (0, 0, None)))(clean, image, radius)


def in_one_and_then_the_other(clean, image, radius):
    """The projection on the ball, clipped: feasible, and not the nearest."""
    return jax.jit(jax.vmap(lambda c, x: geometry.within(geometry.l1(), c, x, radius)))(clean, image)


def test_by_hand(x64):
    """The first pixel has room for 0.25; of the other 0.25, the second one takes all while the third stays."""
    clean, image = jnp.array([0.75, 0.5, 0.5, 0.0]), jnp.array([1.5, 1.0, 0.625, -3.0])
    np.testing.assert_array_equal(geometry.project_l1_box(clean, image, 0.5), [1.0, 0.75, 0.5, 0.0])
    np.testing.assert_array_equal(geometry.project_l1_box(clean, image, 0.25), [1.0, 0.5, 0.5, 0.0])
    np.testing.assert_array_equal(geometry.project_l1_box(clean, image, 5.0), [1.0, 1.0, 0.625, 0.0])
    np.testing.assert_array_equal(geometry.project_l1_box(clean, image, 0.0), clean)


@pytest.mark.parametrize("radius", [0.5, 2.0, 8.0, 100.0])
def test_agreement_with_the_reference(radius, shared, x64):
    stored = np.load(shared / "golden" / "autoattack" / "pieces.npz")
    clean, image = stored["l1ball_x"], stored["l1ball_x"] + stored["l1ball_y"]
    expected = image + stored[f"l1ball_delta_{radius}"]
    np.testing.assert_allclose(projected(clean, image, radius), expected, rtol=0, atol=1e-12)
    other = in_one_and_then_the_other(clean, image, radius)
    assert np.allclose(other, expected, rtol=0, atol=1e-12) == (radius == 100)


@pytest.mark.parametrize("radius", SHARES)
def test_no_feasible_point_is_nearer(radius, problem, x64):
    """Feasible, and with v = image - found at an obtuse angle to every way into the set: <v, z - found> <= 0.

    The largest <v, z> over the set fills the room of the largest |v| first, until the radius is spent.
    """
    clean, image = problem
    found = np.asarray(projected(clean, image, radius))
    assert found.min() >= 0
    assert found.max() <= 1
    sizes = np.abs(found - clean).reshape(40, -1).sum(1)
    assert np.all(sizes <= radius * (1 + 1e-14) + 1e-16)

    def gain(found):
        """max over z of <v, z - found>, 0 at the projection alone."""
        v = (image - found).reshape(40, -1)
        room = np.where(v > 0, 1 - clean.reshape(40, -1), clean.reshape(40, -1))
        order = np.argsort(-np.abs(v), axis=1)
        room, size = (np.take_along_axis(a, order, 1) for a in (room, np.abs(v)))
        spent = np.clip(radius - (np.cumsum(room, 1) - room), 0, room)
        return np.sum(spent * size, 1) - np.sum(v * (found - clean).reshape(40, -1), 1)

    assert np.all(np.abs(gain(found)) <= 1e-12)
    if radius in (0.5, 2.0):
        assert np.any(gain(np.asarray(in_one_and_then_the_other(clean, image, radius))) > 1e-3)
        assert np.any(gain(np.clip(found + 1e-6 * np.sign(found - clean), 0, 1)) < -1e-12)


def test_untouched_pixels_are_the_clean_ones(problem):
    clean, image = (jnp.asarray(part, jnp.float32) for part in problem)
    found = projected(clean, image, 0.5)
    assert found.dtype == jnp.float32
    same = np.asarray(found == clean)
    assert same.mean() > 0.5
    assert np.abs(np.asarray(found - clean))[~same].min() > 1e-7
    sizes = np.abs(np.asarray(found, np.float64) - np.asarray(clean)).reshape(40, -1).sum(1)
    assert np.all(sizes <= 0.5 * (1 + 1e-6))
    assert found.min() >= 0
    assert found.max() <= 1


def test_projecting_again_changes_nothing_and_jit_neither(problem, x64):
    clean, image = problem
    found = projected(clean, image, 2.0)
    np.testing.assert_allclose(projected(clean, found, 2.0), found, rtol=0, atol=1e-15)
    for i in (0, 7):
        np.testing.assert_allclose(geometry.project_l1_box(clean[i], jnp.asarray(image[i]), 2.0), found[i], atol=1e-15)
    assert not np.allclose(projected(clean, image, 1.9), found, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtype_is_kept(dtype, x64):
    clean = jax.ShapeDtypeStruct((3, 2), dtype)
    assert jax.eval_shape(lambda c, x: geometry.project_l1_box(c, x, 0.5), clean, clean).dtype == dtype


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match=r"radius must not be negative, got -1\.0"):
        geometry.project_l1_box(jnp.zeros(2), jnp.ones(2), -1.0)
