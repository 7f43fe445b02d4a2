"""The nearest point of a hyperplane within the box: by hand, against the reference, against solvers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxrobust import geometry
from jaxrobust.attacks import hyperplane

from .golden import pieces

NORMS = {"linf": hyperplane.linf, "l2": hyperplane.l2, "l1": hyperplane.l1}
MAPPED = {name: jax.jit(jax.vmap(project)) for name, project in NORMS.items()}
BALLS = {"linf": geometry.linf(), "l2": geometry.l2(), "l1": geometry.l1()}
every = pytest.mark.parametrize("name", NORMS)


def problems(count=40, size=12):
    """Points (a third of them corners of the box), normals with zeros, and gaps within reach, of both signs."""
    rng = np.random.default_rng(0)
    points, normals = rng.uniform(0, 1, (count, size)), rng.standard_normal((count, size))
    points[: count // 3] = np.round(points[: count // 3])
    normals[rng.uniform(size=normals.shape) < 0.2] = 0
    sides = rng.choice([-1.0, 1.0], count)
    gaps = sides * rng.uniform(0.05, 0.95, count) * reach(points, normals, sides)
    return points, normals, gaps


def reach(points, normals, sides):
    """The largest gap that the box lets close."""
    room = np.where(sides[:, None] * normals > 0, points, 1 - points)
    return (np.abs(normals) * room).sum(1)


def solved(name, point, normal, gap):
    """The smallest norm, by a solver."""
    n = len(point)
    if name == "l2":
        cvxpy = pytest.importorskip("cvxpy")
        delta = cvxpy.Variable(n)
        limits = [normal @ delta == -gap, point + delta >= 0, point + delta <= 1]
        program = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(delta)), limits)
        return program.solve(solver="CLARABEL")
    # Sizes: one bound for all entries, or one for each.
    count = 1 if name == "linf" else n
    sizes = np.ones((n, 1)) if name == "linf" else np.eye(n)
    bounds = [(-t, 1 - t) for t in point] + [(0, None)] * count
    found = linprog(
        np.r_[np.zeros(n), np.ones(count)],
        A_ub=np.block([[np.eye(n), -sizes], [-np.eye(n), -sizes]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.r_[normal, np.zeros(count)][None],
        b_eq=[-gap],
        bounds=bounds,
    )
    return found.fun


@every
def test_by_hand(name):
    """Weights 1, 1, -2, with room of 3/4, 1/4 and 1."""
    point, normal = jnp.array([0.75, 0.25, 0.0]), jnp.array([1.0, 1.0, -2.0])
    gap = {"linf": 1.75, "l2": 2.125, "l1": 2.125}[name]
    expected = {"linf": [-0.5, -0.25, 0.5], "l2": [-0.375, -0.25, 0.75], "l1": [-0.09375, -0.03125, 1.0]}[name]
    np.testing.assert_allclose(NORMS[name](point, normal, jnp.array(gap)), expected, atol=1e-6)


@every
def test_agreement_with_the_reference(name, shared, x64):
    stored = pieces(shared)
    point, normal = jnp.asarray(stored["t"]), jnp.asarray(stored["w"])
    gap = jnp.sum(point * normal, 1) - jnp.asarray(stored["b"])
    found = MAPPED[name](point, normal, gap)
    np.testing.assert_allclose(found, stored[f"d_{name}"], atol=1e-12)
    # Some lie on either side, some hyperplanes miss the box, some weights are zero.
    missed = np.abs(gap) > reach(np.asarray(point), np.asarray(normal), np.sign(gap))
    assert all(0 < which.mean() < 1 for which in (missed, np.asarray(gap) > 0, stored["w"] == 0))
    # The mistake of an unturned side.
    assert np.abs(MAPPED[name](point, normal, jnp.abs(gap)) - stored[f"d_{name}"]).max() > 0.1


@every
def test_no_displacement_is_smaller(name, x64):
    point, normal, gap = problems()
    found = np.asarray(MAPPED[name](*map(jnp.asarray, (point, normal, gap))))
    assert np.all((point + found >= 0) & (point + found <= 1))
    np.testing.assert_allclose((normal * found).sum(1), -gap, atol=1e-12)
    sizes = jax.vmap(BALLS[name].norm)(jnp.asarray(found))
    best = np.array([solved(name, *each) for each in zip(point, normal, gap, strict=True)])
    np.testing.assert_allclose(sizes, best, atol=1e-6)
    # What is smallest in another norm is not smallest in this one.
    for other in set(NORMS) - {name}:
        elsewhere = MAPPED[other](*map(jnp.asarray, (point, normal, gap)))
        assert np.max(jax.vmap(BALLS[name].norm)(elsewhere) - best) > 0.01


@every
def test_the_length_away_from_the_box_is_the_gap_over_the_dual_norm(name, x64):
    rng = np.random.default_rng(1)
    normal, gap = jnp.asarray(rng.standard_normal((5, 4, 3))), jnp.asarray(rng.uniform(-0.1, 0.1, 5))
    found = MAPPED[name](jnp.full((5, 4, 3), 0.5), normal, gap)
    expected = jnp.abs(gap) / jax.vmap(BALLS[name].dual_norm)(normal)
    np.testing.assert_allclose(jax.vmap(BALLS[name].norm)(found), expected, rtol=1e-12)
    forgotten = MAPPED[name](jnp.full((5, 4, 3), 0.001), normal, gap)
    assert not np.allclose(jax.vmap(BALLS[name].norm)(forgotten), expected, rtol=1e-3)


@every
def test_the_corner_where_the_hyperplane_misses_the_box(name, x64):
    point, normal, gap = problems()
    side = np.sign(gap)
    far = side * reach(point, normal, side) * 1.5
    found = MAPPED[name](*map(jnp.asarray, (point, normal, far)))
    toward = -side[:, None] * np.sign(normal)
    corner = np.where(toward > 0, 1 - point, np.where(toward < 0, -point, 0))
    np.testing.assert_allclose(found, corner, atol=1e-12)
    assert not np.allclose(MAPPED[name](*map(jnp.asarray, (point, normal, gap))), corner, atol=1e-2)


@every
def test_turning_the_box_turns_the_displacement(name, x64):
    point, normal, gap = map(jnp.asarray, problems())
    found = MAPPED[name](point, normal, gap)
    np.testing.assert_allclose(MAPPED[name](1 - point, -normal, gap), -found, atol=1e-12)
    np.testing.assert_allclose(MAPPED[name](point, -normal, -gap), found, atol=1e-12)
    np.testing.assert_allclose(MAPPED[name](point, 3 * normal, 3 * gap), found, atol=1e-12)
    assert not np.allclose(MAPPED[name](point, -normal, gap), found, atol=1e-2)


@every
@pytest.mark.parametrize(("weight", "gap"), [(0.0, 0.5), (0.0, 0.0), (1.0, 0.0), (1e-40, 0.5)])
def test_no_weights_or_no_gap(name, weight, gap):
    """Nowhere to go or nothing to do: it stays, and nothing divides by zero."""
    found = jax.jit(NORMS[name])(jnp.array([0.0, 0.25, 1.0]), jnp.full(3, weight), jnp.array(gap))
    assert np.all(np.isfinite(found))
    if weight in (0.0, 1.0):
        np.testing.assert_array_equal(found, 0)


def test_tiny_weights_are_zero_in_l2(x64):
    normal = jnp.array([1.0, 0.9e-8, 1.1e-8])
    found = hyperplane.l2(jnp.full(3, 0.5), normal, jnp.array(10.0))
    np.testing.assert_array_equal(found, [-0.5, 0, -0.5])
    np.testing.assert_array_equal(hyperplane.linf(jnp.full(3, 0.5), normal, jnp.array(10.0)), [-0.5, -0.5, -0.5])


def test_equal_weights_share_in_l1(x64):
    """In proportion to their room, after the larger ones: in whatever order they come."""
    found = hyperplane.l1(jnp.array([0.2, 0.5, 0.9, 0.4]), jnp.array([1.0, 2.0, -1.0, 1.0]), jnp.array(1.35))
    np.testing.assert_allclose(found, [-0.1, -0.5, 0.05, -0.2], atol=1e-12)


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_and_shape_are_kept(name, dtype, x64):
    point, normal = (jnp.asarray(each[0].reshape(3, 2, 2), dtype) for each in problems()[:2])
    found = jax.eval_shape(NORMS[name], point, normal, jnp.asarray(0.5, dtype))
    assert (found.shape, found.dtype) == (point.shape, point.dtype)


@every
def test_jit_changes_nothing_and_traces_once(name):
    point, normal, gap = (jnp.asarray(each, jnp.float32) for each in problems(4))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(point, normal, gap):
        return jax.vmap(NORMS[name])(point, normal, gap)

    np.testing.assert_allclose(run(point, normal, gap), jax.vmap(NORMS[name])(point, normal, gap), atol=1e-6)
    run(point[::-1], normal, gap)
    with pytest.raises(AssertionError, match="traced"):
        run(point[:2], normal[:2], gap[:2])
