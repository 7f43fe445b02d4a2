"""Sums over columns, block by block: every column counts once, whatever the number of columns and whoever is dead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import aggregate, rules
from jaxrobust.aggregation.rules.distances import gram_with, norms, over_blocks, squared_distances_to
from jaxrobust.aggregation.rules.weighted import weighted_sum

WORKERS = 5
BLOCK = 8192


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).standard_normal((WORKERS, 2 * BLOCK + 3)).astype(np.float32)


def products_about_median(rows, other):
    """The Gram matrix of rows and of one more, in float64."""
    apart = np.concatenate([rows, other[None]]).astype(np.float64) - np.median(rows, axis=0)
    return apart @ apart.T


@pytest.mark.parametrize("columns", [1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 3])
def test_each_column_counts_once(columns):
    places = jnp.arange(columns, dtype=jnp.int32)
    found = jax.jit(lambda places: over_blocks(lambda block: jnp.sum(block), places))(places)
    assert found == columns * (columns - 1) // 2


def test_gram_of_several_blocks(rows):
    alive, other = jnp.ones(WORKERS, bool), rows[0] + 1
    wanted = products_about_median(rows, other)
    found = jax.jit(lambda x: gram_with(x, other, None, alive))(rows)
    atol = 1e-5 * np.max(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)
    np.testing.assert_allclose(jax.jit(rules.gram)(rows), wanted[:-1, :-1], rtol=0, atol=atol)
    # Without the ragged end a difference shows.
    short = products_about_median(rows[:, :-3], other[:-3])
    assert np.max(np.abs(short - wanted)) > atol


def test_mapped_gram_of_several_blocks(rows):
    stacked = np.stack([rows, 2 * rows])
    found = jax.vmap(rules.gram)(stacked)
    np.testing.assert_allclose(found[1], 4 * found[0], rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(found[0], rules.gram(rows), rtol=1e-5, atol=1e-2)


def test_gradient_through_several_blocks(rows):
    wanted = 2 * (rows - np.median(rows, axis=0))
    gradient = jax.jit(jax.grad(lambda x: jnp.trace(rules.gram(x))))(rows)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6)


def test_dead_rows_have_no_say_and_no_gradient(rows):
    rows, alive = rows.copy(), np.arange(WORKERS) != 2
    rows[2] = np.nan

    def total(x):
        apart = squared_distances_to(x, jnp.ones(x.shape[1]), None, jnp.asarray(alive))
        joined = weighted_sum(jnp.asarray(alive, jnp.float32), x, jnp.asarray(alive))
        return jnp.sum(apart) + jnp.sum(norms(x, None, jnp.asarray(alive))) + jnp.sum(joined)

    living = rows[alive]
    wanted = np.sum((living - 1.0) ** 2) + np.sum(np.linalg.norm(living, axis=1)) + np.sum(living)
    value, gradient = jax.jit(jax.value_and_grad(total))(rows)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_array_equal(gradient[2], 0.0)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[alive].any(axis=1))


@pytest.mark.parametrize("lie", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_leaves_its_row_out(rows, lie):
    lies = rows.copy()
    lies[1, BLOCK] = lie
    found = jax.jit(lambda x: aggregate(rules.mean(), x))(lies)
    np.testing.assert_allclose(found, np.mean(np.delete(rows, 1, axis=0), axis=0), rtol=1e-5, atol=1e-6)
    lies[1, BLOCK] = np.finfo(np.float32).max
    assert not np.allclose(jax.jit(lambda x: aggregate(rules.mean(), x))(lies), found)
