"""Grids, modes and coarser grids."""

import numpy as np
import pytest

from jaxrobust.solvers import Periodic, random_fields, resampled, trajectories


@pytest.mark.parametrize("dimensions", [1, 2])
def test_modes_and_back_and_the_derivative(dimensions):
    grid = Periodic(12, 3.0, dimensions)
    field = np.random.default_rng(0).standard_normal((5, *(12,) * dimensions))
    np.testing.assert_allclose(grid.field(grid.spectrum(field)), field, atol=1e-12)
    for axis, (place, k) in enumerate(zip(grid.places, grid.wavenumbers, strict=True)):
        wave = np.broadcast_to(np.sin(2 * np.pi / 3.0 * 2 * place), (12,) * dimensions)
        slope = np.broadcast_to(4 * np.pi / 3.0 * np.cos(2 * np.pi / 3.0 * 2 * place), (12,) * dimensions)
        np.testing.assert_allclose(grid.field(1j * k * grid.spectrum(wave)), slope, atol=1e-12)
        if dimensions == 2:
            other = grid.wavenumbers[1 - axis]
            assert np.abs(grid.field(1j * other * grid.spectrum(wave)) - slope).max() > 1


@pytest.mark.parametrize(("points", "last"), [(24, 7), (16, 5), (10, 3)])
def test_a_product_of_kept_modes_is_exact_where_modes_are_kept(points, last):
    grid, wide = Periodic(points, 1.0), Periodic(4 * points, 1.0)
    kept = np.flatnonzero(grid.kept)
    assert kept[-1] == last
    modes = np.random.default_rng(1).standard_normal((2, kept.size)).view(complex).reshape(-1)[: kept.size]

    def square(on, count):
        whole = np.zeros(on.points // 2 + 1, complex)
        whole[:count] = on.points * modes[:count]
        return grid_modes(on, on.field(whole) ** 2)

    def grid_modes(on, field):
        return (on.spectrum(field) / on.points)[: last + 1]

    modes = np.append(modes, np.ones(points)).astype(complex)
    modes[0] = modes[0].real
    np.testing.assert_allclose(square(grid, last + 1), square(wide, last + 1), atol=1e-12)
    # One third more of the modes, and some fall on those that are kept.
    more = last + 1 + points // 6
    assert np.abs(square(grid, more) - square(wide, more)).max() > 1e-3


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_coarser_grid_keeps_the_modes_that_it_can_tell_apart(dimensions):
    fine, coarse = Periodic(32, 1.0, dimensions), Periodic(12, 1.0, dimensions)
    smooth = random_fields(np.random.default_rng(0), 3, 32, dimensions, modes=5)
    found = resampled(smooth, 12, dimensions)
    back = resampled(smooth, 32, dimensions)
    np.testing.assert_allclose(back, smooth, atol=1e-12)
    assert found.shape == (3, *(12,) * dimensions)
    np.testing.assert_allclose(np.mean(found**2), np.mean(smooth**2), rtol=1e-10)
    # A mode that the coarse grid would take for another one is left out, where every n-th point would keep it.
    wave = np.broadcast_to(np.cos(2 * np.pi * 10 * fine.places[-1]), (32,) * dimensions)
    assert np.abs(resampled(wave, 8, dimensions)).max() < 1e-12
    every = wave[(slice(None, None, 4),) * dimensions]
    assert np.abs(every).max() > 0.9
    # Even the sign of a direction is kept.
    slanted = np.cos(2 * np.pi * sum((axis + 1) * place for axis, place in enumerate(fine.places)))
    expected = np.cos(2 * np.pi * sum((axis + 1) * place for axis, place in enumerate(coarse.places)))
    np.testing.assert_allclose(resampled(slanted, 12, dimensions), expected, atol=1e-12)


def test_random_fields_are_long_waves_of_one_size():
    fields = random_fields(np.random.default_rng(3), 4, 24, 2, modes=3, size=2.0)
    modes = np.abs(np.fft.fft2(fields))
    numbers = np.abs(np.fft.fftfreq(24, 1 / 24))
    outside = np.maximum(numbers[:, None], numbers[None, :]) > 3
    assert modes[:, outside].max() < 1e-9 < modes[:, ~outside].max()
    np.testing.assert_allclose(np.sqrt(np.mean(fields**2, (1, 2))), 2.0)
    assert np.abs(fields[0] - fields[1]).max() > 0.1


def test_trajectories_discard_and_keep():
    runs = trajectories(lambda u: u + 1, np.array([[0.0], [10.0]]), 3, discarded=2)
    np.testing.assert_array_equal(runs[..., 0], [[2, 3, 4, 5], [12, 13, 14, 15]])


def test_bad_arguments_are_refused():
    for build, said in (
        (lambda: Periodic(7, 1.0), "points must be even and at least 4, got 7"),
        (lambda: Periodic(8, 0.0), "length must be positive, got 0.0"),
        (lambda: Periodic(8, 1.0, 3), "dimensions must be 1 or 2, got 3"),
        (lambda: resampled(np.zeros(8), 16), "at most those of the fields, 8, got 16"),
        (lambda: random_fields(np.random.default_rng(0), 1, 8, modes=4), r"modes must lie in \[1, 4\)"),
        (lambda: trajectories(lambda u: u, np.ones(1), 0), "steps must be positive, got 0"),
        (lambda: trajectories(lambda u: u, np.ones(1), 1, discarded=-1), "discarded must not be negative, got -1"),
        (lambda: trajectories(lambda u: u * np.nan, np.ones(1), 3), "not finite after 1 steps: take a smaller dt"),
    ):
        with pytest.raises(ValueError, match=said):
            build()
