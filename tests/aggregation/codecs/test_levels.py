"""Rounding to levels: exact probabilities, level hits, and fast paths that say what the general one says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import codecs
from jaxrobust.aggregation.codecs import levels, quantization

GRID = 256
DRAWS = jnp.asarray((np.arange(GRID) + 0.5) / GRID, jnp.float32)
KINDS = {
    "uniform": levels.uniform,
    "exponential": levels.exponential,
    "general": lambda bits, zero_level: levels.arbitrary(levels.powers(0.7, bits, zero_level)),
    "general uniform": lambda bits, zero_level: levels.arbitrary(levels.uniform(bits, zero_level).values),
}


def filled(values):
    """Over and over again up to 256 of them: numbers of every width are rounded by the same programs."""
    return np.resize(values, 256)


def numbers(values):
    """Random numbers, all levels, and the smallest numbers there are."""
    drawn = np.random.default_rng(0).uniform(-1, 1, 50) * 10.0 ** -np.random.default_rng(1).uniform(0, 4, 50)
    return jnp.asarray(np.concatenate([drawn, [0.0, 1e-37, -1e-37], filled(values)]), jnp.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("zero_level", [True, False])
def test_a_grid_of_draws_gives_the_mean_and_neighbors_only(kind, bits, zero_level):
    level = KINDS[kind](bits, zero_level)
    values = np.asarray(level.values, np.float64)
    r = numbers(values)
    codes = np.asarray(level.rounding(*jnp.broadcast_arrays(r[:, None], DRAWS[None])))
    assert codes.max() < len(values) == 2**bits - zero_level
    below = np.clip(np.searchsorted(values, np.asarray(r, np.float64), side="right") - 1, 0, len(values) - 2)
    gap = values[below + 1] - values[below]
    away = np.minimum(np.abs(codes - below[:, None]), np.abs(codes - below[:, None] - 1))
    assert (away[gap > 1e-30] == 0).all()
    off = np.abs(values[codes].mean(1) - np.asarray(r, np.float64))
    # The grid itself resolves a gap to half of its spacing.
    assert (off <= gap * (0.51 / GRID) + 1e-6 * np.abs(r) + 1e-30).all()
    nearest = np.asarray(level.rounding(r, jnp.full_like(r, 0.5)))
    assert not (np.abs(values[nearest] - np.asarray(r)) <= gap * (0.51 / GRID) + 1e-30).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("zero_level", [True, False])
def test_a_level_never_moves(kind, bits, zero_level):
    level = KINDS[kind](bits, zero_level)
    places, r = filled(np.arange(level.values.size)), jnp.asarray(filled(level.values), jnp.float32)
    draws = jnp.asarray([0.0, 1e-6, 0.5, 1 - 2.0**-23], jnp.float32)
    codes = level.rounding(*jnp.broadcast_arrays(r[:, None], draws[None]))
    moved = np.abs(np.asarray(codes, int) - places[:, None])
    # Where levels are not dyadic, a level and its float32 neighbors may be told apart by the last draw alone.
    assert moved[:, :3].max() == 0 if kind == "exponential" or bits == 2 else moved.max() <= 1
    between = filled(level.values[:-1] + np.diff(level.values) / 2)
    shifted = level.rounding(jnp.asarray(between, jnp.float32), jnp.zeros(256))
    assert (np.asarray(shifted) != filled(np.arange(level.values.size - 1))).any()


def test_bounds_of_the_theorem():
    for bits in (3, 4, 5):
        for size in (64, 1024, 8192):
            s = 2 ** (bits - 1) - 2
            stated = 1 / 8 + min(2.0**-s * np.sqrt(size), 2.0 ** (-2 * s - 2) * size)
            found = codecs.variance_bound(levels.exponential(bits).values, size)
            assert 0.8 * stated <= found <= stated + 1e-9
    # Where the innermost level decides, NUQSGD's bound is below QSGD's; at two bits the levels are the same.
    for bits in (3, 4, 5, 6):
        nonuniform, uniform = (
            codecs.variance_bound(kind(bits).values, 8192) for kind in (levels.exponential, levels.uniform)
        )
        assert nonuniform < uniform
    same = [codecs.variance_bound(kind(2).values, 64) for kind in (levels.exponential, levels.uniform)]
    assert same[0] == same[1]
    without = levels.exponential(3, zero_level=False).values
    assert codecs.variance_bound(without, 8192) > codecs.variance_bound(levels.exponential(3).values, 8192)


def test_the_worst_vector_nearly_meets_the_bound():
    # All coordinates equal to half of the innermost level, in one bucket whose norm is one.
    values = levels.exponential(3).values
    size = int((2 / values[4]) ** 2)
    x = jnp.full(size, float(values[4]) / 2)
    relative = float(codecs.rounding_variance(x, values, size).sum() / jnp.sum(x**2))
    assert 0.8 < relative / codecs.variance_bound(values, size) <= 1


def test_other_levels_compile_nothing_anew():
    """Eager encodings of a codec whose levels move."""
    r, u = jnp.linspace(-1.0, 1.0, 50), jnp.linspace(0.0, 0.99, 50)
    lane = jax.jit(lambda rounding, r, u: rounding(r, u))
    for middle in (0.1, 0.2, 0.3):
        found = levels.arbitrary(jnp.array([-1.0, middle, 1.0])).rounding
        np.testing.assert_array_equal(lane(found, r, u), found(r, u))
    assert lane._cache_size() == 1
    codec, x = codecs.alq(3, 64), jnp.linspace(-1.0, 1.0, 300)
    shared, own = codec.init(300)
    before = quantization._rounded_lane._cache_size()
    for middle in (0.1, 0.2, 0.3):
        moved = shared._replace(levels=shared.levels.at[3].set(-middle).at[4].set(middle))
        codec.encode(jax.random.key(0), x, (moved, own))
    assert quantization._rounded_lane._cache_size() <= before + 1
