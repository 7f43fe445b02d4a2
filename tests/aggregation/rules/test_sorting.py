"""Networks that sort, for every number of rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation.rules.sorting import by_itself, comparators, middle, sort_rows


@pytest.mark.parametrize("count", range(1, 13))
def test_zeros_and_ones_are_sorted(count):
    """What sorts all rows of zeros and ones sorts everything."""
    inputs = np.array(list(itertools.product((0.0, 1.0), repeat=count))).T

    def ran(pairs):
        rows = inputs.copy()
        for low, high in pairs:
            rows[low], rows[high] = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
        return rows

    pairs = comparators(count)
    np.testing.assert_array_equal(ran(pairs), np.sort(inputs, axis=0))
    if pairs:  # One pair less, and something is out of order.
        assert not np.array_equal(ran(pairs[:-1]), np.sort(inputs, axis=0))


def test_as_many_comparators_as_batcher_needs():
    assert [len(comparators(count)) for count in (2, 4, 8, 16, 32)] == [1, 5, 19, 63, 191]


def test_rows_are_sorted():
    rows = jax.random.normal(jax.random.key(0), (21, 4))
    np.testing.assert_array_equal(jnp.stack(jax.jit(sort_rows)(list(rows))), np.sort(rows, axis=0))


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_middle_of_any_living(count):
    rows = np.asarray(jax.random.normal(jax.random.key(count), (count, 3)))
    found = jax.jit(middle)
    for alive in itertools.product((False, True), repeat=count):
        if any(alive):
            low, high = found(np.where(np.array(alive)[:, None], rows, np.nan), jnp.array(alive))
            ordered = np.sort(rows[list(alive)], axis=0)
            np.testing.assert_array_equal(low, ordered[(sum(alive) - 1) // 2])
            np.testing.assert_array_equal(high, ordered[sum(alive) // 2])


def test_by_itself_is_the_function_once_or_nothing():
    rows, calls = jnp.arange(6.0).reshape(3, 2), []

    def ends(x):
        calls.append(x)
        return x[0], x[-1]

    found = jax.jit(lambda alive: by_itself(ends, alive, rows))
    first, last = found(jnp.array([False, True, True]))
    np.testing.assert_array_equal(first, rows[0])
    np.testing.assert_array_equal(last, rows[-1])
    np.testing.assert_array_equal(found(jnp.zeros(3, bool))[1], [0, 0])
    gradient = jax.grad(lambda x: jnp.sum(by_itself(lambda x: (2 * x,), jnp.ones(1, bool), x)[0] + x))(rows)
    np.testing.assert_array_equal(gradient, jnp.ones((3, 2)))
