"""Hostile workers: they break the mean, and the median survives them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import all_reduce, exact_mean, hostile, rules, sign_flip

WORKERS = 8


def distance_after_descent(reduce, steps=50):
    """Workers minimize |x - target|^2 / 2, each with a slightly different target around 1."""
    targets = 1 + 0.01 * jax.random.normal(jax.random.key(0), (WORKERS, 3))

    def step(carry, _):
        x, state = carry
        reduced, state = jax.vmap(reduce.update, axis_name="data")(x - targets, state)
        return (x - 0.1 * reduced[0], state), None

    state = reduce.init(jnp.zeros(3))
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (WORKERS, *jnp.shape(leaf))), state)
    (x, _), _ = jax.lax.scan(step, (jnp.zeros(3), state), length=steps)
    return float(jnp.max(jnp.abs(x - 1)))


def test_mean_breaks_and_median_survives():
    median = all_reduce("data", rule=rules.median())
    assert distance_after_descent(hostile(exact_mean("data"), sign_flip(10.0), faulty=2)) > 10
    assert distance_after_descent(hostile(median, sign_flip(10.0), faulty=2)) < 0.05
    # Without hostile workers the mean arrives, and with a hostile majority the median does not.
    assert distance_after_descent(hostile(exact_mean("data"), sign_flip(10.0), faulty=0)) < 0.05
    assert distance_after_descent(hostile(median, sign_flip(10.0), faulty=5)) > 10


def test_only_the_first_workers_lie_and_each_has_its_key():
    def noise(key, gradient):
        return jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), gradient)

    recording = rules.stateless(lambda key, columns, alive, axis: (columns[:, 0], jnp.ones(WORKERS)))
    honest = jnp.arange(100.0, 100.0 + WORKERS)[:, None] * jnp.ones((1, WORKERS))
    reduce = hostile(all_reduce("data", rule=recording), noise, faulty=3, key=jax.random.key(0))
    seen, state = jax.vmap(reduce.update, (0, None), axis_name="data")(honest, reduce.init(honest[0]))
    np.testing.assert_array_equal(seen[0, 3:], honest[3:, 0])
    assert len(np.unique(seen[0, :3])) == 3
    assert np.abs(seen[0, :3]).max() < 10
    state = jax.tree.map(lambda leaf: leaf[0], state)
    again, _ = jax.vmap(reduce.update, (0, None), axis_name="data")(honest, state)
    assert not np.array_equal(again[0, :3], seen[0, :3])


def test_it_averages_where_the_reduction_inside_does():
    assert hostile(exact_mean("data"), sign_flip(), faulty=1).averages
    assert not hostile(all_reduce("data", rule=rules.median()), sign_flip(), faulty=1).averages


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="faulty must not be negative, got -1"):
        hostile(exact_mean("data"), sign_flip(), faulty=-1)
    with pytest.raises(ValueError, match=r"scale must be positive, got 0\.0"):
        sign_flip(0.0)
    reduce = hostile(exact_mean("data"), sign_flip(), faulty=8)
    with pytest.raises(ValueError, match="faulty must be less than the 8 workers, got 8"):
        jax.vmap(reduce.update, (0, None), axis_name="data")(jnp.zeros(8), reduce.init(jnp.float32(0)))
