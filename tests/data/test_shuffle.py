import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.data import shuffle


def orders(keys, size, positions=None):
    """`[key, position]` numbers at the first positions of the orders of several keys."""
    positions = jnp.arange(size if positions is None else positions, dtype=jnp.uint32)
    one = jax.vmap(shuffle.permuted, (None, 0, None))
    return np.asarray(jax.jit(jax.vmap(one, (0, None, None)), static_argnums=2)(keys, positions, size))


def too_far(counts, expected):
    """Whether the chi-square statistic is over four of its standard deviations from its mean."""
    freedom = counts.size - 1
    chi_square = np.sum((counts - expected) ** 2 / expected)
    return abs(chi_square - freedom) > 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [1, 2, 5, 16, 17, 32, 33, 1438])
def test_each_number_comes_once(size):
    for order in orders(jax.random.split(jax.random.key(size), 2), size):
        assert sorted(order) == list(range(size))


def test_sizes_up_to_the_largest():
    size = 2**31
    found = orders(jax.random.split(jax.random.key(0), 1), size, 4096)[0]
    assert len(set(found.tolist())) == 4096
    assert found.max() < size
    # 4096 uniform draws: the largest is above 0.99 of the range but for once in e^41 times.
    assert found.max() > 0.99 * size


@pytest.mark.parametrize("size", [5, 37])
def test_every_number_is_as_likely_at_every_position(size):
    count = 20_000
    found = orders(jax.random.split(jax.random.key(1), count), size)
    for position in range(size):
        assert not too_far(np.bincount(found[:, position], minlength=size), count / size)


def pair_counts(size, count, rounds):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "ROUNDS_OF_FEW", rounds)
        found = orders(jax.random.split(jax.random.key(2), count), size, 2)
    counts = np.bincount(found[:, 0] * size + found[:, 1], minlength=size**2).reshape(size, size)
    assert not np.diagonal(counts).any()
    return counts[~np.eye(size, dtype=bool)], count / (size * (size - 1))


@pytest.mark.parametrize("size", [3, 5, 33])
def test_every_pair_is_as_likely(size):
    assert not too_far(*pair_counts(size, 200_000, shuffle.ROUNDS_OF_FEW))


def test_too_few_rounds_show_in_pairs():
    assert too_far(*pair_counts(5, 200_000, 8))


def test_orders_of_two_keys_are_independent():
    a, b = orders(jax.random.split(jax.random.key(3), 2), 4096)
    # The number of agreements of two random orders is Poisson of mean 1.
    assert np.sum(a == b) < 10
    assert np.sum(a == a) == 4096


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_mapping_over_keys_changes_nothing_with_any_generator(kind):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0, impl=kind), i))(jnp.arange(3))
    together = orders(keys, 11)
    alone = np.concatenate([orders(keys[i : i + 1], 11) for i in range(3)])
    np.testing.assert_array_equal(together, alone)
