"""Levels of least variance: golden numbers, and no better ones anywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxrobust.aggregation.codecs import (
    TruncatedNormals,
    alq_levels,
    amq_multiplier,
    fit,
    level_fitting,
    powers,
    truncated_normals,
)

expected_variance = jax.jit(level_fitting.expected_variance)
cdf, density, moments, quantile = (
    jax.jit(getattr(truncated_normals, name)) for name in ("cdf", "density", "moments", "quantile")
)

MIXTURE = ([0.0, 0.05, -0.3], [0.01, 0.1, 0.2], [5.0, 2.0, 1.0])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def distribution(mean=MIXTURE[0], sigma=MIXTURE[1], weight=MIXTURE[2], dtype=jnp.float64):
    return TruncatedNormals(*(jnp.asarray(part, dtype) for part in (mean, sigma, weight)))


def golden(shared, case, name):
    path = shared / "golden" / "quantisation" / f"case_{case}.npz"
    if not path.exists():
        pytest.skip("no golden numbers")
    numbers = np.load(path)
    if name == "nl":
        return numbers, distribution(*([float(numbers[key])] for key in ("stat_nl_mean", "stat_nl_sigma")), [1.0])
    return numbers, distribution(*(numbers[key] for key in ("stat_means", "stat_sigmas", "stat_norms")))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def alq(known, bits, zero_level=False, symmetric=False):
    return alq_levels(known, bits, zero_level=zero_level, symmetric=symmetric)


@functools.partial(jax.jit, static_argnums=(1, 2))
def amq(known, bits, zero_level=False):
    return amq_multiplier(known, bits, zero_level=zero_level)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.02, 0.021), (0.3, 0.9), (-0.6, -0.01), (0.9, 1.0)])
def test_integrals_are_those_of_quadrature(low, high):
    def pdf(r):
        parts = [
            weight * stats.truncnorm.pdf(r, (-1 - mean) / sigma, (1 - mean) / sigma, mean, sigma)
            for mean, sigma, weight in zip(*MIXTURE, strict=True)
        ]
        return sum(parts) / sum(MIXTURE[2])

    def integral(factor):
        points = [p for p in (-0.3, -0.03, 0.0, 0.03, 0.05, 0.1, 0.3) if low < p < high]
        return integrate.quad(lambda r: factor(r) * pdf(r), low, high, points=points, limit=500, epsabs=1e-14)[0]

    found = moments(distribution(), jnp.float64(low), jnp.float64(high))
    expected = [integral(f) for f in (lambda r: 1.0, lambda r: high - r, lambda r: (high - r) * (r - low))]
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    single = moments(distribution(dtype=jnp.float32), jnp.float32(low), jnp.float32(high))
    np.testing.assert_allclose(single, expected, rtol=1e-3)
    np.testing.assert_allclose(cdf(distribution(), quantile(distribution(), jnp.float64(0.3))), 0.3, rtol=1e-9)


@pytest.mark.parametrize("case", "ABC")
@pytest.mark.parametrize(("name", "close"), [("nl", 1e-12), ("nb", 1e-3)])
def test_distributions_and_variances_agree_with_the_golden_numbers(shared, case, name, close):
    numbers, known = golden(shared, case, name)
    grid = jnp.asarray(numbers["grid_x"])
    top = numbers[f"{name}_pdf"].max()
    np.testing.assert_allclose(cdf(known, grid), numbers[f"{name}_cdf"], atol=close)
    np.testing.assert_allclose(density(known, grid) / top, numbers[f"{name}_pdf"] / top, atol=close)
    np.testing.assert_allclose(
        quantile(known, jnp.asarray(numbers["grid_p"])), numbers[f"{name}_ppf"], atol=max(close, 1e-12)
    )
    static = np.load(shared / "golden" / "quantisation" / "static_levels.npz")
    bits, narrower = int(numbers["meta_bits"]), known._replace(sigma=known.sigma / 10)
    for start, levels in (("uni", f"uniform_{bits}"), ("exp", f"exp_{bits}_0.5")):
        found = float(expected_variance(jnp.asarray(static[levels]), known))
        expected = pytest.approx(float(numbers[f"var_{name}_{start}"]), rel=close, abs=0)
        assert found == expected
        assert float(expected_variance(jnp.asarray(static[levels]), narrower)) != expected


@pytest.mark.parametrize("case", "ABC")
@pytest.mark.parametrize("name", ["nl", "nb"])
def test_alq_is_never_above_the_closed_form_of_the_reference(shared, case, name):
    numbers, known = golden(shared, case, name)
    levels = alq(known, int(numbers["meta_bits"]))
    loss = float(expected_variance(levels, known))
    compared = 0
    for start in ("uni", "exp", "qua"):
        theirs = numbers[f"alq_inv_asym_{name}_{start}_levels"]
        # Empty where the reference stopped at an interval without mass.
        if theirs.size:
            compared += 1
            least = float(expected_variance(jnp.asarray(theirs), known))
            assert 0.995 * least < loss <= least * (1 + 1e-12)
            np.testing.assert_allclose(levels, theirs, atol=0.01)
    assert compared
    symmetric = jnp.asarray(numbers[f"alq_inv_sym_{name}_qua_levels"])
    assert loss < 0.99 * float(expected_variance(symmetric, known))


@pytest.mark.parametrize("case", "ABC")
@pytest.mark.parametrize("name", ["nl", "nb"])
def test_amq_is_never_above_the_reference(shared, case, name):
    numbers, known = golden(shared, case, name)
    bits = int(numbers["meta_bits"])
    found = amq(known, bits)

    def loss(p):
        return float(expected_variance(powers(jnp.asarray(p, jnp.float64), bits, False), known))

    theirs = numbers["update_amq" + ("_nb" if name == "nb" else "") + "_multiplier"]
    assert loss(found) <= loss(theirs) * (1 + 1e-9)
    assert min(loss(p) for p in np.linspace(0.02, 0.98, 97)) >= loss(found) * (1 - 1e-9)
    if case == "A":
        # The reference's selection leaves the central interval out.
        assert float(found) == pytest.approx(0.157, abs=1e-3)
        assert loss(theirs) > 2 * loss(found)


def dynamic_optimum(known, count, points=1500):
    """The best levels on a grid, by dynamic programming over all pairs: variance of an interval between grid points."""
    middle = np.asarray(quantile(known, jnp.linspace(0.0, 1.0, points - 400)))
    grid = np.unique(np.concatenate([np.linspace(-1, 1, 400), middle]))
    # Prefix integrals of 1, r and r^2 give any interval's variance at once.
    parts = [np.asarray(part) for part in moments(known, jnp.asarray(grid[:-1]), jnp.asarray(grid[1:]))]
    mass, low, high = parts[0], grid[:-1], grid[1:]
    first = high * mass - parts[1]
    second = (low + high) * first - low * high * mass - parts[2]
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (mass, first, second)]
    d0, d1, d2 = (part[None, :] - part[:, None] for part in sums)
    cost = (grid[:, None] + grid[None, :]) * d1 - grid[:, None] * grid[None, :] * d0 - d2
    cost[np.tril_indices(grid.size, -1)] = np.inf
    best, came = cost[0], []
    for _ in range(count - 2):
        total = best[:, None] + cost
        came.append(total.argmin(0))
        best = total.min(0)
    place, levels = grid.size - 1, [1.0]
    for previous in reversed(came):
        place = previous[place]
        levels.append(grid[place])
    return np.array([*levels, -1.0][::-1])


@pytest.mark.parametrize(
    "known",
    [([0.0], [0.011], [1.0]), ([0.02, 0.0], [0.3, 0.003], [1.0, 3.0])],
    ids=["narrow", "two scales"],
)
def test_alq_is_the_optimum_of_dynamic_programming(known):
    known = distribution(*known)
    levels = alq(known, 3)
    loss = float(expected_variance(levels, known))
    oracle = jnp.asarray(dynamic_optimum(known, 8))
    on_grid = float(expected_variance(oracle, known))
    polished = float(expected_variance(jax.jit(lambda start: alq_levels(known, 3, start=start))(oracle), known))
    assert loss <= on_grid
    assert loss == pytest.approx(polished, rel=1e-6)
    assert float(expected_variance(jnp.linspace(-1, 1, 8), known)) > 1.5 * loss


@pytest.mark.parametrize("zero_level", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_levels_are_stationary_sorted_and_as_asked(zero_level, symmetric):
    known = distribution([0.0, 0.0], [0.05, 0.2], [1.0, 1.0]) if symmetric else distribution()
    levels = alq(known, 3, zero_level, symmetric)
    assert levels.shape == (8 - zero_level,)
    assert (levels[0], levels[-1]) == (-1, 1)
    assert bool((jnp.diff(levels) > 0).all())
    if zero_level:
        assert levels[3] == 0
    if symmetric:
        np.testing.assert_allclose(levels, -levels[::-1], atol=1e-15)
    slope = jax.grad(lambda inner: expected_variance(levels.at[1:-1].set(inner), known))(levels[1:-1])
    loss = float(expected_variance(levels, known))
    slope = (slope - slope[::-1]) / 2 if symmetric else slope
    slope = slope.at[2].set(0) if zero_level else slope
    np.testing.assert_allclose(slope / loss, 0, atol=1e-2)
    away = levels.at[1].add(0.02) if not symmetric else levels.at[1].add(0.02).at[-2].add(-0.02)
    assert float(expected_variance(away, known)) > loss * (1 + 1e-6)


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("sigma", [1e-3, 0.3])
def test_every_width_and_narrow_masses_in_float32(bits, sigma):
    known = distribution([0.0], [sigma], [1.0], jnp.float32)
    levels = alq(known, bits)
    assert levels.dtype == jnp.float32
    assert bool(jnp.isfinite(levels).all())
    assert bool((jnp.diff(levels) >= 0).all())
    exact = distribution([0.0], [sigma], [1.0])
    loss = float(expected_variance(levels.astype(jnp.float64), exact))
    uniform = float(expected_variance(jnp.linspace(-1, 1, 2**bits), exact))
    assert loss < uniform
    p = amq(known, bits)
    assert p.dtype == jnp.float32
    assert 0 < float(p) < 1


def test_all_mass_in_one_interval_draws_levels_to_it():
    known = distribution([0.5], [1e-3], [1.0])
    levels = alq(known, 3)
    assert int(((levels > 0.49) & (levels < 0.51)).sum()) >= 5
    assert float(expected_variance(levels, known)) < 1e-6


def test_fit_by_hand():
    found = fit(jnp.array([[0.5, -0.5, 0.0, 9.0], [0.1, 0.3, 0.5, 0.7]]), count=jnp.array([3, 4]))
    np.testing.assert_allclose(found.mean, [0.0, 0.4])
    np.testing.assert_allclose(found.sigma, [0.5, np.std([0.1, 0.3, 0.5, 0.7], ddof=1)])


def test_bad_widths_are_refused():
    for method in (alq_levels, amq_multiplier):
        with pytest.raises(ValueError, match=r"^bits must lie in 2 to 8, got 9$"):
            method(distribution(), 9)
