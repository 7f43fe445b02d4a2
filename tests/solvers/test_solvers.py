"""Laws that every solver keeps, exact solutions, and the peer's solvers; a new solver is a new row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import solvers
from jaxrobust.solvers import Periodic, exponential_step, random_fields

LENGTH = 22.0


def kuramoto_sivashinsky(points=24, dt=0.25, **options):
    return solvers.kuramoto_sivashinsky(points, LENGTH, dt, **options)


def kolmogorov(points=18, dt=0.1, **options):
    return solvers.kolmogorov(points, dt, viscosity=0.05, **options)


ROWS = {"kuramoto_sivashinsky": (kuramoto_sivashinsky, 24, 1), "kolmogorov": (kolmogorov, 18, 2)}


def start(points, dimensions, count=2):
    return random_fields(np.random.default_rng(0), count, points, dimensions, modes=3)


def order_of(make, state, order):
    """What halving the step divides the error by, as a power of 2."""
    exact = make(order=4, substeps=64)(state)
    errors = [np.abs(make(order=order, substeps=count)(state) - exact).max() for count in (8, 16)]
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_error_falls_with_the_order_in_time(name, order):
    make, points, dimensions = ROWS[name]
    state = start(points, dimensions)
    assert order_of(lambda **options: make(dt=1.0, **options), state, order) == pytest.approx(order, abs=0.25)


def test_the_order_check_sees_a_rule_of_lower_order():
    state = start(24, 1)
    with pytest.raises(AssertionError):
        assert order_of(lambda **o: kuramoto_sivashinsky(dt=1.0, **{**o, "order": 1}), state, 2) == pytest.approx(
            2, abs=0.25
        )


@pytest.mark.parametrize("name", ROWS)
def test_numpy_and_jax_are_one_solver(name):
    make, points, dimensions = ROWS[name]
    step, state = make(substeps=2), start(points, dimensions, count=6)
    found = step(state)
    assert isinstance(found, np.ndarray)
    with jax.enable_x64(True):
        inside = jax.jit(jax.vmap(step))(jnp.asarray(state))
        np.testing.assert_allclose(inside, found, atol=1e-12)
        slope = jax.grad(lambda amount: jnp.sum(step(amount * jnp.asarray(state)) ** 2))(1.0)
        difference = (np.sum(step(1.00001 * state) ** 2) - np.sum(step(0.99999 * state) ** 2)) / 2e-5
        assert float(slope) == pytest.approx(difference, rel=1e-6)
    np.testing.assert_allclose(step(state.reshape(2, 3, *state.shape[1:])).reshape(state.shape), found, atol=1e-12)
    for array in (state.astype(np.float32), jnp.asarray(state, jnp.float32)):
        with jax.numpy_dtype_promotion("strict"):
            narrow = step(array)
        assert narrow.dtype == np.float32
        np.testing.assert_allclose(narrow, found, atol=1e-4)
    with pytest.raises(ValueError, match=rf"a state must be \[..., {points}\]"):
        step(np.zeros((4,) * dimensions))


@pytest.mark.parametrize("name", ROWS)
def test_substeps_are_steps(name):
    make, points, dimensions = ROWS[name]
    state = start(points, dimensions)
    half, step = make(dt=0.05), make(dt=0.1, substeps=2)
    np.testing.assert_allclose(step(state), half(half(state)), atol=1e-12)
    assert np.abs(step(state) - half(state)).max() > 1e-3


def growth(step, number, dt):
    """Rate of a small wave of a solver on 48 points."""
    wave = 1e-9 * np.cos(2 * np.pi * number * np.arange(48) / 48)
    return np.log(np.abs(step(wave)[0] / wave[0])) / dt


@pytest.mark.parametrize("order", [1, 2, 4])
def test_small_waves_grow_by_their_exact_rates(order):
    step, numbers = kuramoto_sivashinsky(48, 0.3, order=order), np.arange(1, 9)
    k = 2 * np.pi / LENGTH * numbers
    found = [growth(step, number, 0.3) for number in numbers]
    np.testing.assert_allclose(found, k**2 - k**4, atol=1e-6)
    assert max(found) > 0.2 > -1 > min(found)
    # The fourth order with the wrong sign is caught.
    grid = Periodic(48, LENGTH)
    mistaken = grid.stepped(
        exponential_step(grid.wavenumbers[0] ** 2 + grid.wavenumbers[0] ** 4, np.zeros_like, 0.3, order), 1
    )
    assert np.abs(growth(mistaken, 2, 0.3) - (k**2 - k**4)[1]) > 0.1


def transfer(step, state, grid, linear, dt):
    """What the nonlinear part alone does, from a step of order 1: N = (u' - e^z u) z / (h (e^z - 1))."""
    z = dt * linear
    weight = dt * np.where(z == 0, 1.0, np.expm1(z) / np.where(z == 0, 1.0, z))
    return (grid.spectrum(step(state)) - np.exp(z) * grid.spectrum(state)) / weight


def test_steepening_moves_energy_and_makes_none():
    """Without aliases, the sum over x of u (u^2)_x vanishes for modes that are kept."""
    grid, dt = Periodic(24, LENGTH), 1e-3
    (k,) = grid.wavenumbers
    u = grid.field(grid.kept * grid.spectrum(np.random.default_rng(0).standard_normal(24)))

    def made(step):
        return np.sum(u * grid.field(transfer(step, u, grid, k**2 - k**4, dt)))

    moved = grid.field(transfer(kuramoto_sivashinsky(24, dt, order=1), u, grid, k**2 - k**4, dt))
    assert np.abs(made(kuramoto_sivashinsky(24, dt, order=1))) < 1e-8 < 0.1 < np.abs(moved).max()
    # Without the two-thirds rule it does not.
    full = np.random.default_rng(0).standard_normal(24)
    aliased = grid.stepped(
        exponential_step(k**2 - k**4, lambda modes: -0.5j * k * grid.spectrum(grid.field(modes) ** 2), dt, 1), 1
    )
    u = grid.field(grid.spectrum(full) * (k < k[-1]))
    assert np.abs(made(aliased)) > 0.1


def test_waves_that_are_not_kept_have_no_part_in_products():
    """States from outside, a corrector's say, have all waves."""
    line, plane, dt = Periodic(24, LENGTH), Periodic(18, 2 * np.pi, 2), 1e-3
    (k,), square = line.wavenumbers, sum(k**2 for k in plane.wavenumbers)
    flow = solvers.kolmogorov(18, dt, viscosity=0.05, drag=0.0, order=1)
    rows = [
        (line, kuramoto_sivashinsky(24, dt, order=1), k**2 - k**4, (24,)),
        (plane, flow, -0.05 * square, (18, 18)),
    ]
    for grid, step, linear, shape in rows:
        full = np.random.default_rng(0).standard_normal(shape)
        kept = grid.field(grid.kept * grid.spectrum(full))
        found, expected = (transfer(step, u, grid, linear, dt) for u in (full, kept))
        np.testing.assert_allclose(found, expected, atol=1e-7 * np.abs(expected).max())
        # The control: other waves that are kept do.
        assert np.abs(transfer(step, 1.1 * kept, grid, linear, dt) - expected).max() > 1e-3 * np.abs(expected).max()


def test_the_mean_is_kept_by_one_and_decays_in_the_other():
    u = start(24, 1) + 0.7
    np.testing.assert_allclose(kuramoto_sivashinsky(substeps=4)(u).mean(-1), 0.7, atol=1e-12)
    vorticity = start(18, 2) + 0.7
    found = solvers.kolmogorov(18, 0.5, viscosity=0.05, drag=0.3)(vorticity).mean((-2, -1))
    np.testing.assert_allclose(found, 0.7 * np.exp(-0.15), atol=1e-12)
    assert np.abs(found - 0.7).max() > 0.05


def test_vorticity_is_carried_as_worked_by_hand():
    """For sin x + cos 2y: psi = sin x + cos(2y) / 4, v = (-sin(2y) / 2, -cos x), v . grad = 3/2 cos x sin 2y."""
    grid, dt = Periodic(18, 2 * np.pi, 2), 1e-4
    x, y = grid.places
    linear = -0.05 * sum(k**2 for k in grid.wavenumbers)
    step = solvers.kolmogorov(18, dt, viscosity=0.05, drag=0.0, force=0.0, order=1)
    found = grid.field(transfer(step, np.sin(x) + np.cos(2 * y), grid, linear, dt))
    np.testing.assert_allclose(found, -1.5 * np.cos(x) * np.sin(2 * y), atol=1e-8)
    assert np.abs(found + 1.5 * np.cos(y) * np.sin(2 * x)).max() > 1


def test_transport_keeps_energy_and_enstrophy():
    grid, dt = Periodic(18, 2 * np.pi, 2), 1e-3
    square = sum(k**2 for k in grid.wavenumbers)
    vorticity = grid.field(grid.kept * grid.spectrum(np.random.default_rng(1).standard_normal((18, 18))))
    vorticity -= vorticity.mean()
    psi = grid.field(grid.spectrum(vorticity) / np.where(square > 0, square, 1.0))
    step = solvers.kolmogorov(18, dt, viscosity=0.05, drag=0.0, force=0.0, order=1)
    moved = grid.field(transfer(step, vorticity, grid, -0.05 * square, dt))
    for weight in (psi, vorticity):
        assert np.abs(np.sum(weight * moved)) < 1e-7
    assert np.abs(np.sum(vorticity**2 * moved)) > 1e-3


def test_viscosity_and_drag_slow_the_laminar_flow_exactly():
    """Waves along y carry nothing: each mode relaxes to its balance at its own rate."""
    step = solvers.kolmogorov(18, 0.7, viscosity=0.05, drag=0.2, mode=2, force=0.5, order=1)
    y = Periodic(18, 2 * np.pi, 2).places[1]
    wave = np.tile(np.cos(2 * y), (18, 1))
    rate = 0.05 * 4 + 0.2
    balance = -2 * 0.5 / rate
    np.testing.assert_allclose(step(3.0 * wave), (balance + (3.0 - balance) * np.exp(-0.7 * rate)) * wave, atol=1e-12)


@pytest.fixture
def stepper():
    pytest.importorskip("exponax")
    with jax.enable_x64(True):
        from exponax import stepper

        yield stepper


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("order", [1, 2, 4])
def test_exponax_solves_alike(stepper, order):
    peer = stepper.KuramotoSivashinskyConservative(1, LENGTH, 24, 0.25, order=order)
    state = start(24, 1)
    np.testing.assert_allclose(
        kuramoto_sivashinsky(order=order)(state), jax.vmap(peer)(jnp.asarray(state)[:, None])[:, 0], atol=1e-9
    )
    # Its vorticity turns the other way round, and so must its force.
    options = {"diffusivity": 0.05, "drag": -0.1, "injection_scale": -1.0, "order": order}
    flow = stepper.KolmogorovFlowVorticity(2, 2 * np.pi, 18, 0.1, **options)
    state = start(18, 2)
    found = -jax.vmap(flow)(-jnp.asarray(state)[:, None])[:, 0]
    np.testing.assert_allclose(kolmogorov(order=order)(state), found, atol=1e-9)
    # Another drag is another flow.
    other = solvers.kolmogorov(18, 0.1, viscosity=0.05, drag=0.0, order=order)(state)
    assert np.abs(other - found).max() > 1e-3


def test_the_quotients_near_zero_keep_their_digits():
    """phi_1, phi_2 and phi_3 of numbers near 0 by their series, where plain quotients lose all digits."""
    from jaxrobust.solvers.exponential import _phi

    z = np.array([0.0, 1e-9, -1e-5, -0.5])
    series = [1 + z / 2 + z**2 / 6 + z**3 / 24, 1 / 2 + z / 6 + z**2 / 24, 1 / 6 + z / 24 + z**2 / 120]
    for found, expected in zip(_phi(z), series, strict=True):
        np.testing.assert_allclose(found[:3], expected[:3], rtol=1e-13)
    exact = [(np.exp(-0.5) - 1) / -0.5]
    exact += [(exact[0] - 1) / -0.5]
    exact += [(exact[1] - 0.5) / -0.5]
    np.testing.assert_allclose([found[3] for found in _phi(z)], exact, rtol=1e-12)
    plain = ((np.exp(1e-9) - 1) / 1e-9 - 1) / 1e-9
    assert abs(plain - 0.5) > 1e-3


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: kuramoto_sivashinsky(dt=0.0), "dt must be positive, got 0.0"),
        (lambda: kuramoto_sivashinsky(order=3), "order must be 1, 2 or 4, got 3"),
        (lambda: kuramoto_sivashinsky(substeps=0), "substeps must be positive, got 0"),
        (lambda: solvers.kuramoto_sivashinsky(12, 30.0), "points must be more than 3 length / 2 pi, 14.3, got 12"),
        (lambda: solvers.kolmogorov(viscosity=0.0), "viscosity must be positive, got 0.0"),
        (lambda: solvers.kolmogorov(drag=-0.1), "drag must not be negative, got -0.1"),
        (lambda: solvers.kolmogorov(12, mode=4), r"mode must lie in \[1, 4.0\), a third of the points, got 4"),
    ],
)
def test_bad_arguments_are_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()
