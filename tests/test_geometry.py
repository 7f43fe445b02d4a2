"""Laws that every geometry keeps; a new geometry is a new row. Everything runs under strict dtype promotion."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust import geometry

SHAPE = (4, 6, 2)
RADIUS = 0.7
ROUNDING = 1e-12


def numpy_lp(p):
    return lambda x: np.linalg.norm(np.ravel(x), ord=p)


def numpy_fourier(combine):
    return lambda x: combine(np.abs(np.fft.fft2(x, axes=(0, 1)) / math.sqrt(x.shape[0] * x.shape[1])))


def lp_second_moment(p):
    """E |x|^2 of a uniform draw from the unit ball of the p-norm, n coordinates."""

    def moment(shape):
        n = math.prod(shape)
        logs = [math.lgamma(a) for a in (3 / p, n / p + 1, 1 / p, (n + 2) / p + 1)]
        return n * math.exp(logs[0] + logs[1] - logs[2] - logs[3])

    return moment


def fourier_second_moment(shape):
    """Complex coefficients fill a disk (1/2), the self-conjugate real ones a segment (1/3)."""
    height, width, channels = shape
    real = (1 + (height % 2 == 0)) * (1 + (width % 2 == 0))
    return channels * (real / 3 + (height * width - real) / 2)


def sensitivity(shape):
    """Mannos and Sakrison's curve at 8 pixels a degree, by its formula."""
    rows, columns = (8 * np.fft.fftfreq(side) for side in shape[:2])
    f = np.hypot(rows[:, None], columns)
    found = 2.6 * (0.0192 + 0.114 * f) * np.exp(-((0.114 * f) ** 1.1))
    return (found / found.max())[:, :, None]


def numpy_weighted(combine, power):
    return lambda x: combine(np.abs(np.fft.fft2(x, axes=(0, 1), norm="ortho")) * sensitivity(x.shape) ** power)


def alone(shape):
    """Which frequencies are their own opposites."""
    rows, columns = ((2 * np.arange(side)) % side == 0 for side in shape[:2])
    return np.broadcast_to((rows[:, None] & columns)[:, :, None], shape)


def weighted_linf_second_moment(shape):
    return np.sum(np.where(alone(shape), 1 / 3, 1 / 2) / sensitivity(shape) ** 2)


def fourier_l1_second_moment(weights):
    """Of density exp(-norm), a coefficient in a pair has E |z|^2 = 3 / 2 w^2 and one alone 2 / w^2."""

    def moment(shape):
        n = math.prod(shape)
        return np.sum(np.where(alone(shape), 2, 1.5) / weights(shape) ** 2) / ((n + 1) * (n + 2))

    return moment


def numpy_singular(combine):
    return lambda x: combine(np.linalg.svd(x.reshape(-1, x.shape[-1]), compute_uv=False))


def spectral_second_moment(shape):
    """X X' has the matrix beta distribution, of mean n / (m + n + 1)."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    return rows * columns / (rows + columns + 1)


def compiled(g):
    """The same geometry, each function compiled once a shape instead of operation by operation."""
    functions = {name: jax.jit(getattr(g, name)) for name in ("norm", "dual_norm", "steepest", "project")}
    return g._replace(**functions, sample=jax.jit(g.sample, static_argnums=1))


# The geometry, its norm and its dual norm in NumPy, and the second moment of a uniform draw.
RAW = {
    "linf": (geometry.linf(), numpy_lp(np.inf), numpy_lp(1), lambda shape: math.prod(shape) / 3),
    "l2": (geometry.l2(), numpy_lp(2), numpy_lp(2), lp_second_moment(2)),
    "l1": (geometry.l1(), numpy_lp(1), numpy_lp(np.inf), lp_second_moment(1)),
    "l1.5": (geometry.lp(1.5), numpy_lp(1.5), numpy_lp(3), lp_second_moment(1.5)),
    "l3": (geometry.lp(3.0), numpy_lp(3), numpy_lp(1.5), lp_second_moment(3)),
    "fourier_linf": (geometry.fourier_linf(), numpy_fourier(np.max), numpy_fourier(np.sum), fourier_second_moment),
    "fourier_l1": (
        geometry.fourier_l1(),
        numpy_fourier(np.sum),
        numpy_fourier(np.max),
        fourier_l1_second_moment(lambda shape: 1.0),
    ),
    "weighted_fourier_linf": (
        geometry.fourier_linf(geometry.contrast_sensitivity(8.0)),
        numpy_weighted(np.max, 1),
        numpy_weighted(np.sum, -1),
        weighted_linf_second_moment,
    ),
    "weighted_fourier_l1": (
        geometry.fourier_l1(geometry.contrast_sensitivity(8.0)),
        numpy_weighted(np.sum, 1),
        numpy_weighted(np.max, -1),
        fourier_l1_second_moment(sensitivity),
    ),
    "spectral": (geometry.spectral(), numpy_singular(np.max), numpy_singular(np.sum), spectral_second_moment),
}
TABLE = {name: (compiled(row[0]), *row[1:]) for name, row in RAW.items()}
every = pytest.mark.parametrize("name", TABLE)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(seed, *lead, scale=1.0):
    found = scale * np.random.default_rng(seed).standard_normal((*lead, *SHAPE))
    return jnp.asarray(found, jnp.zeros(()).dtype)


def inner(one, two):
    return float(jnp.sum(one * two))


@every
def test_norms_by_their_formulae(name, x64):
    g, norm, dual, _ = TABLE[name]
    x = draw(0)
    assert g.name == name
    assert float(g.norm(x)) == pytest.approx(norm(np.asarray(x)), rel=ROUNDING)
    assert float(g.dual_norm(x)) == pytest.approx(dual(np.asarray(x)), rel=ROUNDING)
    other = numpy_lp(2.5)(np.asarray(x))
    assert abs(float(g.norm(x)) - other) > 1e-3 * other


@every
def test_a_norm_is_a_norm(name, x64):
    g = TABLE[name][0]
    x, y = draw(0), draw(1)

    def axioms(norm):
        homogeneous = abs(norm(-2.5 * x) - 2.5 * norm(x)) < 1e-9
        triangle = norm(x + y) <= (norm(x) + norm(y)) * (1 + ROUNDING) and norm(x) <= norm(x + y) + norm(y)
        return homogeneous and triangle and norm(0 * x) == 0 < norm(x)

    assert axioms(g.norm)
    assert axioms(g.dual_norm)
    assert not axioms(lambda x: g.norm(x) ** 2)


@every
def test_the_steepest_direction_attains_the_dual_norm(name, x64):
    g = TABLE[name][0]

    def attains(slope, d):
        unit = float(g.norm(d)) == pytest.approx(1, rel=1e-10)
        return unit and inner(slope, d) == pytest.approx(float(g.dual_norm(slope)), rel=1e-10)

    for seed in range(20):
        slope = draw(seed)
        d = g.steepest(slope)
        assert attains(slope, d)
        assert not attains(slope, jnp.roll(d, 1))
        assert not attains(slope, 0.999 * d)


@pytest.mark.parametrize("name", ["fourier_l1", "weighted_fourier_l1"])
def test_the_slopes_above_have_waves_alone_and_in_pairs(name, x64):
    g = TABLE[name][0]
    lone = set()
    for seed in range(20):
        spectrum = np.abs(np.fft.fft2(g.steepest(draw(seed)), axes=(0, 1)))
        lone.add(int((spectrum > 1e-9 * spectrum.max()).sum()))
    assert lone == {1, 2}


@every
def test_no_direction_beats_the_dual_norm(name, x64):
    g = TABLE[name][0]
    slope = draw(0)
    points = jax.vmap(lambda x: x / g.norm(x))(draw(1, 200))
    points = jnp.concatenate([points, g.steepest(slope)[None]])
    slopes = jnp.sum(points * slope, axis=(1, 2, 3))
    assert slopes.max() <= g.dual_norm(slope) * (1 + 1e-10)
    assert slopes.max() > 0.999 * g.dual_norm(slope)


def optimal(g, x, found, radius):
    """Whether found is the nearest point: <x - found, z - found> <= 0 in the ball; the dual norm is its maximum."""
    rest = x - found
    scale = inner(rest, rest) + inner(found, found)
    inside = float(g.norm(found)) <= radius * (1 + 1e-10)
    return inside and radius * float(g.dual_norm(rest)) - inner(rest, found) <= 1e-9 * scale


@every
def test_the_projection_is_the_nearest_point(name, x64):
    g = TABLE[name][0]
    for x, radius in ((draw(0), RADIUS), (draw(0), 1e-3), (draw(1, scale=30.0), 5.0)):
        found = g.project(x, radius)
        assert optimal(g, x, found, radius)
        assert not optimal(g, x, g.project(x, 0.9 * radius), radius)
        assert not optimal(g, x, x, radius)


@every
def test_the_projection_against_random_points(name, x64):
    g = TABLE[name][0]
    x = draw(0)
    ball = RADIUS * jax.vmap(lambda x: x / jnp.maximum(1, g.norm(x)))(draw(1, 200))
    corners = RADIUS * jax.vmap(g.steepest)(draw(2, 200))

    def nearest(found, points):
        return bool(jnp.all(jnp.sum((x - found) * (points - found), axis=(1, 2, 3)) <= 1e-9))

    found = g.project(x, RADIUS)
    points = jnp.concatenate([ball, corners, found[None]])
    assert nearest(found, points)
    assert not nearest(g.project(x, 0.9 * RADIUS), points)


@every
def test_the_projection_is_idempotent_and_does_not_expand(name, x64):
    g = TABLE[name][0]
    x, y = draw(0, 20), draw(1, 20)
    x = x.at[:10].multiply(0.02)
    projected = jax.jit(jax.vmap(lambda x: g.project(x, RADIUS)))

    def contracts(project):
        once, other = project(x), project(y)
        apart = jnp.linalg.norm((once - other).reshape(20, -1), axis=1)
        return bool(jnp.all(apart <= jnp.linalg.norm((x - y).reshape(20, -1), axis=1) * (1 + ROUNDING)))

    def idempotent(project):
        once = project(y)
        return bool(jnp.allclose(project(once), once, rtol=1e-10, atol=1e-12))

    assert contracts(projected)
    assert not contracts(lambda x: 100 * projected(x))
    assert idempotent(projected)
    assert not idempotent(lambda x: 0.9 * projected(x))


@every
def test_inside_the_ball_nothing_moves(name, x64):
    g = TABLE[name][0]
    x = draw(0)
    np.testing.assert_allclose(g.project(x, 1.01 * float(g.norm(x))), x, rtol=1e-11, atol=1e-13)
    assert not np.allclose(g.project(x, 0.9 * float(g.norm(x))), x, rtol=1e-3)


@every
def test_zeros(name):
    g = TABLE[name][0]
    zeros = jnp.zeros(SHAPE)
    assert not np.any(g.steepest(zeros))
    assert not np.any(g.project(zeros, RADIUS))
    assert not np.any(g.project(draw(0), 0.0))
    assert g.norm(zeros) == g.dual_norm(zeros) == 0
    assert np.all(np.isfinite(jax.grad(g.norm)(zeros)))


@every
@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_small_and_large_gradients(name, magnitude):
    g = TABLE[name][0]
    slope = draw(0)
    np.testing.assert_allclose(g.steepest(magnitude * slope), g.steepest(slope), rtol=1e-4, atol=1e-5)
    assert float(g.dual_norm(magnitude * slope)) == pytest.approx(magnitude * float(g.dual_norm(slope)), rel=1e-4)


@every
@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 2, 3)])
def test_samples_are_uniform(name, shape):
    """The n-th power of the norm is uniform in [0, 1] for a uniform draw; the second moment fixes the shape."""
    g, *_, second_moment = TABLE[name]
    count = 4000
    x = jax.vmap(lambda key: g.sample(key, shape))(jax.random.split(jax.random.key(0), count))
    n = math.prod(shape)

    def radial(x):
        depth = np.asarray(jax.vmap(g.norm)(x), np.float64) ** n
        return depth.max() < 1 + 1e-5 and abs(depth.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / count)

    def spread(x):
        squares = np.sum(np.asarray(x, np.float64) ** 2, axis=(1, 2, 3))
        return abs(squares.mean() - second_moment(shape)) < 4 * squares.std() / math.sqrt(count)

    def symmetric(x):
        """Every one of these balls is: no entry has a mean, and all have the same second moment."""
        x = np.asarray(x, np.float64).reshape(count, -1)
        means = np.abs(x.mean(0)) < 4.5 * x.std(0) / math.sqrt(count)
        squares = np.abs((x**2).mean(0) - second_moment(shape) / n) < 4.5 * (x**2).std(0) / math.sqrt(count)
        return means.all() and squares.all()

    assert x.dtype == jnp.float32
    assert radial(x)
    assert spread(x)
    assert symmetric(x)
    # One orthant alone, and two entries that share one's variance.
    assert not symmetric(jnp.abs(x))
    flat = x.reshape(count, -1)
    assert not symmetric(flat.at[:, 0].multiply(1.3).at[:, 1].multiply(0.6))
    # A draw from the sphere, and one a little too small.
    assert not radial(jax.vmap(lambda x: x / g.norm(x))(x))
    assert not radial(0.97 * x)
    assert not spread(0.9 * x)


@pytest.mark.parametrize("name", [name for name in TABLE if RAW[name][0].dual is not None])
def test_the_dual_of_the_dual(name, x64):
    g = TABLE[name][0]
    dual, x = g.dual(), draw(0)
    assert float(dual.norm(x)) == pytest.approx(float(g.dual_norm(x)), rel=1e-12)
    assert float(dual.dual_norm(x)) == pytest.approx(float(g.norm(x)), rel=1e-12)
    assert float(dual.dual().norm(x)) == pytest.approx(float(g.norm(x)), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in TABLE if RAW[name][0].exponent is not None])
def test_exponent_and_transform_are_the_norm(name, x64):
    g, x = RAW[name][0], draw(0)
    moduli = np.abs(x if g.transform is None else g.transform(x)).ravel()
    assert float(g.norm(x)) == pytest.approx(np.linalg.norm(moduli, g.exponent), rel=1e-12)
    assert float(g.norm(x)) != pytest.approx(np.linalg.norm(moduli, 2.5), rel=1e-3)


@pytest.mark.parametrize("name", ["fourier_linf", "fourier_l1", "weighted_fourier_linf", "weighted_fourier_l1"])
def test_the_fourier_projections_solve_their_programs(name, x64):
    cvxpy = pytest.importorskip("cvxpy")
    g, shape = RAW[name][0], (3, 4, 1)
    x = np.random.default_rng(0).standard_normal(shape)
    basis = np.eye(12).reshape(12, *shape)
    matrix = np.stack([np.asarray(g.transform(jnp.asarray(row))).ravel() for row in basis], 1)
    point = cvxpy.Variable(12)
    moduli = cvxpy.norm(cvxpy.vstack([matrix.real @ point, matrix.imag @ point]), axis=0)
    program = cvxpy.Problem(
        cvxpy.Minimize(cvxpy.sum_squares(point - x.ravel())), [cvxpy.pnorm(moduli, g.exponent) <= RADIUS]
    )
    program.solve(solver="CLARABEL")
    np.testing.assert_allclose(np.ravel(g.project(jnp.asarray(x), RADIUS)), point.value, atol=1e-5)
    assert np.abs(np.ravel(g.project(jnp.asarray(x), 0.9 * RADIUS)) - point.value).max() > 1e-3


def test_contrast_sensitivity_by_its_formula():
    for shape in ((8, 8, 1), (5, 6, 3)):
        found = geometry.contrast_sensitivity(8.0)(shape)
        np.testing.assert_allclose(found, sensitivity(shape)[:, :, 0], rtol=1e-5)
        assert not np.allclose(geometry.contrast_sensitivity(16.0)(shape), found, rtol=1e-2)
    with pytest.raises(ValueError, match="pixels_per_degree must be positive, got 0"):
        geometry.contrast_sensitivity(0)


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(name, dtype, x64):
    g = TABLE[name][0]
    x = draw(0).astype(dtype)
    assert {call(x).dtype for call in (g.norm, g.dual_norm, g.steepest)} == {jnp.dtype(dtype)}
    assert {g.project(x, radius).dtype for radius in (RADIUS, jnp.asarray(0.5, dtype))} == {jnp.dtype(dtype)}


@every
def test_jit_changes_nothing(name):
    raw, g = RAW[name][0], TABLE[name][0]
    x = draw(0)
    for function in ("norm", "dual_norm", "steepest"):
        np.testing.assert_allclose(getattr(raw, function)(x), getattr(g, function)(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(raw.project(x, RADIUS), g.project(x, RADIUS), rtol=1e-5, atol=1e-6)
    assert not np.allclose(raw.project(x, 1.01 * RADIUS), g.project(x, RADIUS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("p", "named"), [(1, "l1"), (1.0, "l1"), (2, "l2"), (math.inf, "linf")])
def test_the_named_norms_are_members_of_the_family(p, named):
    assert geometry.lp(p).name == named


@pytest.mark.parametrize(("p", "named"), [(2 + 1e-9, "l2")])
def test_the_family_is_continuous_at_the_named_norms(p, named, x64):
    g, near = TABLE[named][0], compiled(geometry.lp(p))
    x = draw(0)
    np.testing.assert_allclose(near.project(x, RADIUS), g.project(x, RADIUS), atol=1e-6)
    np.testing.assert_allclose(near.steepest(x), g.steepest(x), atol=1e-6)
    assert not np.allclose(TABLE["l1.5"][0].project(x, RADIUS), g.project(x, RADIUS), atol=1e-6)


@pytest.mark.parametrize("p", [0.5, 0, -1, math.nan])
def test_below_one_there_is_no_norm(p):
    with pytest.raises(ValueError, match=f"p must be at least 1, got {p}"):
        geometry.lp(p)


@every
def test_a_negative_radius_is_refused(name):
    g = RAW[name][0]
    with pytest.raises(ValueError, match=r"radius must not be negative, got -1\.0"):
        g.project(draw(0), -1.0)
    with pytest.raises(ValueError, match=r"radius must not be negative, got -1\.0"):
        geometry.within(g, jnp.zeros(SHAPE), jnp.zeros(SHAPE), -1.0)


@pytest.mark.parametrize(
    ("name", "peer"), [("l1", optax.projections.projection_l1_ball), ("l2", optax.projections.projection_l2_ball)]
)
def test_the_peer_agrees(name, peer, x64):
    x = draw(0, scale=3.0)
    with jax.numpy_dtype_promotion("standard"):
        expected = peer(x, RADIUS)
    np.testing.assert_allclose(TABLE[name][0].project(x, RADIUS), expected, rtol=1e-10, atol=1e-12)


def test_projections_by_hand():
    x = jnp.array([3.0, -1.0, 0.5])
    np.testing.assert_allclose(geometry.l1().project(x, 2.5), [2.25, -0.25, 0], rtol=1e-6)
    np.testing.assert_allclose(geometry.linf().project(x, 0.75), [0.75, -0.75, 0.5], rtol=1e-6)
    np.testing.assert_allclose(geometry.l2().project(jnp.array([3.0, 4.0]), 1.0), [0.6, 0.8], rtol=1e-6)
    # A constant image of side 4 has the one coefficient 4 c: it is cut to the radius.
    np.testing.assert_allclose(
        geometry.fourier_linf().project(jnp.full((4, 4, 1), 0.5), 1.0), jnp.full((4, 4, 1), 0.25), rtol=1e-6
    )


def pixels(count):
    """Images of 8 bits a pixel."""
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (count, *SHAPE)) / 255, jnp.float32)


def box_and_ball(found, clean, norm, radius):
    """Whether an image is in [0, 1] and in the ball."""
    delta = np.asarray(found, np.float64) - np.asarray(clean, np.float64)
    return found.min() >= 0 and found.max() <= 1 and norm(delta) <= radius * (1 + 1e-6)


@every
def test_within_keeps_ball_and_box(name):
    g, norm, *_ = TABLE[name]
    clean = pixels(60).at[:30].set(1.0).at[:15, 0].set(0.0)
    images = clean + draw(1, 60)

    @jax.jit
    def candidates(radius):
        found = jax.vmap(lambda c, i: geometry.within(g, c, i, radius))(clean, images)
        return found, jax.vmap(lambda c, i: c + g.project(i - c, radius))(clean, images)

    for radius in (2 / 255, 0.3):
        found, projected = map(np.asarray, candidates(radius))
        assert found.dtype == np.float32
        assert all(box_and_ball(f, c, norm, radius) for f, c in zip(found, clean, strict=True))
        # Neither the projection nor the clipping alone would do.
        assert not all(box_and_ball(f, c, norm, radius) for f, c in zip(projected, clean, strict=True))
        clipped = np.clip(images, 0, 1)
        assert not all(box_and_ball(f, c, norm, radius) for f, c in zip(clipped, clean, strict=True))


def test_clipping_leaves_the_fourier_ball():
    """The reason for the last shrinking: projecting and clipping once is not enough there."""
    g, norm, *_ = TABLE["fourier_linf"]
    clean = jnp.zeros((50, *SHAPE))
    once = jnp.clip(jax.vmap(lambda c, i: c + g.project(i, RADIUS))(clean, draw(0, 50)), 0, 1)
    assert max(norm(np.asarray(x)) for x in once) > 1.1 * RADIUS


def test_rounding_leaves_the_small_ball():
    """The reason for the last bit: a sum with a pixel near 1 is coarser than a small radius."""
    radius = 1 / 255
    clean = pixels(1)
    rounded = clean + geometry.linf().project(draw(0, 1), radius)
    assert np.abs(np.asarray(rounded, np.float64) - np.asarray(clean, np.float64)).max() > radius * (1 + 1e-6)


@every
def test_within_leaves_feasible_images_alone(name):
    g = TABLE[name][0]
    clean = jnp.full(SHAPE, 0.5)
    image = clean + 0.01 * g.steepest(draw(0))
    np.testing.assert_allclose(geometry.within(g, clean, image, 0.02), image, atol=2e-7)
    np.testing.assert_array_equal(geometry.within(g, clean, image, 0.0), clean)
