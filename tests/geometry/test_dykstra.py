"""Alternating projections: the nearest common point, against a solver; what they give an attack."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrobust import geometry

SHAPE, RADIUS = (3, 4, 1), 0.7
BALLS = {
    "fourier_linf": geometry.fourier_linf(),
    "weighted_fourier_linf": geometry.fourier_linf(geometry.contrast_sensitivity(8.0)),
    "fourier_l1": geometry.fourier_l1(),
    "weighted_fourier_l1": geometry.fourier_l1(geometry.contrast_sensitivity(8.0)),
    "spectral": geometry.spectral(),
    "l2": geometry.l2(),
    "l1": geometry.l1(),
    "l3": geometry.lp(3.0),
    "linf": geometry.linf(),
}


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def cases(count, dtype=np.float64, shape=SHAPE):
    """Images most of whose pixels are black or white, and points far from them."""
    rng = np.random.default_rng(0)
    clean = np.clip(rng.uniform(-1, 2, (count, *shape)), 0, 1)
    return jnp.asarray(clean, dtype), jnp.asarray(clean + rng.standard_normal(clean.shape), dtype)


def many(ball, rounds, clean, images):
    run = jax.jit(jax.vmap(lambda c, x: geometry.intersect(ball, c, x, RADIUS, rounds=rounds)))
    return np.asarray(run(clean, images))


def solved(ball, clean, image):
    """The nearest image of the ball and the box, by a conic solver."""
    cvxpy = pytest.importorskip("cvxpy")
    size = clean.size
    transform = (lambda x: x) if ball.transform is None else ball.transform
    rows = np.stack([np.asarray(transform(jnp.asarray(row.reshape(SHAPE)))).ravel() for row in np.eye(size)], 1)
    delta = cvxpy.Variable(size)
    moduli = cvxpy.norm(cvxpy.vstack([rows.real @ delta, rows.imag @ delta]), axis=0)
    limits = [cvxpy.pnorm(moduli, ball.exponent) <= RADIUS, delta + clean.ravel() >= 0, delta + clean.ravel() <= 1]
    objective = cvxpy.Minimize(cvxpy.sum_squares(delta - (image - clean).ravel()))
    cvxpy.Problem(objective, limits).solve(solver="CLARABEL")
    return clean + delta.value.reshape(SHAPE)


@pytest.mark.parametrize("name", ["fourier_linf", "weighted_fourier_linf", "fourier_l1", "l2", "l1"])
def test_the_nearest_point_by_a_solver(name, x64):
    clean, images = cases(3)
    expected = np.stack([solved(BALLS[name], *pair) for pair in zip(*map(np.asarray, (clean, images)), strict=True)])
    np.testing.assert_allclose(many(BALLS[name], 2000, clean, images), expected, atol=1e-5)
    assert np.abs(many(BALLS[name], 1, clean, images) - expected).max() > 1e-2


def test_corrections_make_it_the_nearest(x64):
    """Projecting in turn without them ends at some common point, which is farther away."""
    ball = BALLS["fourier_linf"]
    clean, images = cases(10)

    def in_turn(clean, image):
        def once(_, x):
            return jnp.clip(clean + ball.project(x - clean, RADIUS), 0, 1)

        return jax.lax.fori_loop(0, 500, once, image)

    def away(found):
        return np.linalg.norm((found - images).reshape(10, -1), axis=1)

    dykstra, plain = many(ball, 500, clean, images), np.asarray(jax.jit(jax.vmap(in_turn))(clean, images))
    assert max(map(float, jax.vmap(ball.norm)(plain - clean))) < RADIUS * (1 + 1e-3)
    assert np.all(away(dykstra) <= away(plain) * (1 + 1e-3))
    assert np.any(away(dykstra) < 0.99 * away(plain))


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("rounds", [1, 5])
def test_ball_and_box_are_kept(name, rounds, x64):
    """Far from converged as well; before the last shrinking the ball is not."""
    ball = BALLS[name]
    clean, images = cases(40)
    found = many(ball, rounds, clean, images)
    norms = np.asarray(jax.vmap(ball.norm)(found - clean))
    assert found.min() >= 0
    assert found.max() <= 1
    assert norms.max() <= RADIUS * (1 + 1e-6)
    if ball.transform is not None:
        unshrunk = jax.vmap(
            lambda c, x: geometry.dykstra(
                [lambda x: c + ball.project(x - c, RADIUS), lambda x: jnp.clip(x, 0, 1)], x, rounds
            )
        )(clean, images)
        assert np.asarray(jax.vmap(ball.norm)(unshrunk - clean)).max() > RADIUS * (1 + 1e-3)


def noise(shape, rng):
    """Images of all values, and what is far from them in all frequencies."""
    return rng.uniform(0.1, 0.9, (16, *shape)), rng.standard_normal((16, *shape))


def waves(shape, rng):
    """Images of one value, and a wave of few: rounding is the same at all of its crests, and adds up."""
    wave = np.where(np.arange(shape[1]) % 4 < 2, 1.0, -1.0)[:, None]
    return np.broadcast_to(np.linspace(0.1, 0.9, 16)[:, None, None, None], (16, *shape)), np.broadcast_to(
        wave, (16, *shape)
    )


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("drawn", [noise, waves])
@pytest.mark.parametrize(("shape", "radius"), [((32, 32, 3), 8 / 255), ((32, 32, 3), 2 / 255), ((5, 8, 1), 2 / 255)])
def test_rounding_carries_nothing_out_of_a_small_ball(name, drawn, shape, radius, x64):
    """Images in 32 bits, whose rounding is not small beside the radius; measured in 64."""
    ball = BALLS[name]
    clean, slopes = (jnp.asarray(part, np.float64) for part in drawn(shape, np.random.default_rng(0)))
    sizes = jax.vmap(ball.norm)(slopes)[:, None, None, None]
    clean = clean.astype(jnp.float32)
    rounded = (clean.astype(jnp.float64) + radius * slopes / sizes).astype(jnp.float32)
    found = jax.jit(jax.vmap(lambda c, x: geometry.within(ball, c, x, radius)))(clean, rounded)

    def norms(found):
        return jax.vmap(ball.norm)(found.astype(jnp.float64) - clean.astype(jnp.float64)) / radius

    assert found.dtype == jnp.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert norms(found).max() <= 1 + 1e-6
    # Nor is an attack weakened by it, but for l1 in many pixels, where one unit in the last place is a percent of each.
    assert norms(found).min() > (0.95 if name == "l1" else 0.995)
    if drawn is waves and shape[0] == 32 and name not in ("linf", "l3"):
        assert norms(rounded).max() > 1 + 1e-6


@pytest.mark.parametrize("name", BALLS)
def test_rounding_to_16_bits_costs_room_and_not_the_image(name):
    """Eight images whose perturbations are long beside the steps of 16 bits, but for l1, whose pixels share 0.25."""
    ball, radius = BALLS[name], 0.25
    clean, images = (part.astype(jnp.bfloat16) for part in cases(8, np.float32, (8, 8, 1)))
    found = jax.jit(jax.vmap(lambda c, x: geometry.within(ball, c, x, radius)))(clean, images)
    norms = jax.vmap(ball.norm)(found.astype(jnp.float32) - clean.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    assert norms.max() <= radius * (1 + 1e-6)
    assert (jnp.max(norms) if name == "l1" else jnp.min(norms)) > 0.5 * radius


@pytest.mark.parametrize("name", ["l2", "fourier_linf"])
def test_gradients_pass_through_what_rounding_is_shrunk_by(name, x64):
    """Of an image outside the ball and of one inside it, against differences."""
    ball = BALLS[name]
    clean, images = cases(2, np.float64, (4, 4, 1))
    for radius in (0.05, 5.0):

        @jax.jit
        def gain(image, radius=radius):
            return jnp.sum(geometry.within(ball, clean[0], image, radius) * images[1])

        assert jnp.any(jax.grad(gain)(clean[0] + 0.1 * images[0]))
        check_grads(gain, (clean[0] + 0.1 * images[0],), order=1, modes=("fwd", "rev"), rtol=1e-4)


def test_examples_of_any_shape():
    """A spectral norm of a vector, and a number."""
    for clean in (jnp.full(6, 0.5), jnp.float32(0.5)):
        for name in ("l2", "linf") if clean.ndim == 0 else ("spectral", "l2", "l1", "l3", "linf"):
            found = geometry.within(BALLS[name], clean, clean + 0.4, 0.2)
            np.testing.assert_allclose(BALLS[name].norm(found - clean), 0.2, rtol=1e-5)


def test_attacks_within_the_fourier_ball_gain_by_it(x64):
    """Steps along a fixed slope on images of the digits' size: five rounds a step against one."""
    ball, radius = BALLS["fourier_linf"], 0.1
    clean, slopes = cases(40, shape=(8, 8, 1))
    slopes = slopes - clean

    def gain(bring_in):
        def one(clean, slope):
            def climb(_, x):
                return bring_in(ball, clean, x + radius / 8 * ball.steepest(slope), radius)

            return jnp.sum((jax.lax.fori_loop(0, 20, climb, clean) - clean) * slope)

        return np.asarray(jax.jit(jax.vmap(one))(clean, slopes))

    once = gain(lambda *arguments: geometry.intersect(*arguments, rounds=1))
    often = gain(lambda *arguments: geometry.intersect(*arguments, rounds=5))
    ours = gain(geometry.within)
    np.testing.assert_allclose(ours, often, rtol=1e-9)
    assert ours.mean() > 1.1 * once.mean()
    assert np.mean(ours > once) > 0.9


def test_by_hand():
    """The nearest point of a disk and a half plane is a corner; one round stops short of it."""

    def right(x):
        return x.at[0].max(0.6)

    def disk(x):
        return geometry.l2().project(x, 1.0)

    point = jnp.array([0.0, 3.0])
    np.testing.assert_allclose(geometry.dykstra([disk, right], point, 200), [0.6, 0.8], atol=1e-5)
    np.testing.assert_allclose(geometry.dykstra([disk, right], point, 1), [0.6, 1.0], atol=1e-6)
    np.testing.assert_allclose(geometry.dykstra([right, disk], point, 1), point.at[0].set(0.6) / 9.36**0.5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept_and_jit_changes_nothing(dtype, x64):
    ball = BALLS["fourier_linf"]
    clean, images = (leaf[0] for leaf in cases(1, dtype))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(clean, image):
        return geometry.intersect(ball, clean, image, RADIUS, rounds=3)

    found = run(clean, images)
    assert found.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(found, geometry.intersect(ball, clean, images, RADIUS, rounds=3), atol=1e-6)
    assert not np.allclose(run(clean, clean), found, atol=1e-3)


def test_bad_settings_are_refused():
    clean = jnp.zeros(SHAPE)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        geometry.intersect(BALLS["l2"], clean, clean, RADIUS, rounds=0)
    with pytest.raises(ValueError, match=r"radius must not be negative, got -1\.0"):
        geometry.intersect(BALLS["l2"], clean, clean, -1.0, rounds=1)
