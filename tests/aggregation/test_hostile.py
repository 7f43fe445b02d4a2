"""Hostile workers in any reduction: who lies, with which keys, over which axes, and that the honest are left alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import Reduction, all_reduce, attackers, axes, exact_mean, hostile, rules

WORKERS, FAULTY, KEY = 8, 3, jax.random.key(3)
BOTH = ("data", "worker")


def gradients(dtype=jnp.float32):
    first, second = jax.random.split(jax.random.key(0))
    tree = {
        "w": jax.random.normal(first, (WORKERS, 3, 5), jnp.float32),
        "b": jax.random.normal(second, (WORKERS, 4), jnp.float32),
    }
    return {"w": tree["w"], "b": tree["b"].astype(dtype)}


def seeing(axis):
    """A reduction that gives back all that was sent, stacked, and counts its steps like the exact mean."""
    mean = exact_mean(axis)

    def update(gradients, state, params=None, **extra):
        return axes.gather(gradients, axis), mean.update(gradients, state)[1]

    return Reduction(mean.init, update, mean.combine, axis, mean.averages)


def stacked(state):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (WORKERS, *jnp.shape(leaf))), state)


def start(reduce, tree):
    return stacked(reduce.init(jax.tree.map(lambda leaf: leaf[0], tree)))


def over_vmap(make, tree):
    reduce = make("data")
    return jax.jit(jax.vmap(reduce.update, axis_name="data"))(tree, start(reduce, tree))


def each(update, *arguments):
    """The update of the one worker that a shard holds."""
    found = update(*jax.tree.map(lambda leaf: leaf[0], arguments))
    return jax.tree.map(lambda leaf: leaf[None], found)


def sharded(function, devices):
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False))


def over_shard_map(make, tree):
    reduce = make("data")
    return sharded(functools.partial(each, reduce.update), WORKERS)(tree, start(reduce, tree))


def over_nested(make, tree):
    reduce = make(BOTH)
    return sharded(jax.vmap(reduce.update, axis_name="worker"), 4)(tree, start(reduce, tree))


OVER = {"vmap": over_vmap, "shard_map": over_shard_map, "nested": over_nested}


def rows_of(tree):
    return jax.vmap(lambda one: ravel_pytree(one)[0])(tree)


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("name", ["gaussian", "bit_flip", "little_is_enough", "optimized"])
def test_the_first_workers_send_what_the_attacker_makes_of_all(over, name):
    attack = {
        "gaussian": attackers.gaussian(),
        "bit_flip": attackers.bit_flip(),
        "little_is_enough": attackers.little_is_enough(1.5),
        "optimized": attackers.optimized(rules.median()),
    }[name]
    tree = gradients()
    seen, state = OVER[over](lambda axis: hostile(seeing(axis), attack, FAULTY, key=KEY), tree)
    rows = rows_of(tree)
    expected = attack(jax.random.fold_in(KEY, 0), rows[FAULTY:], rows[:FAULTY])
    for worker in range(WORKERS):
        found = rows_of(jax.tree.map(lambda leaf, worker=worker: leaf[worker], seen))
        np.testing.assert_array_equal(found[FAULTY:], rows[FAULTY:])
        np.testing.assert_allclose(found[:FAULTY], expected, rtol=1e-5, atol=1e-6)
        assert not np.allclose(found[:FAULTY], rows[:FAULTY])
    assert state.shared.count.tolist() == [1] * WORKERS


def test_every_step_and_every_worker_has_its_own_draw():
    reduce = hostile(seeing("data"), attackers.gaussian(1.0), FAULTY, key=KEY)
    tree, update = gradients(), jax.jit(jax.vmap(reduce.update, axis_name="data"))
    first, state = update(tree, start(reduce, tree))
    second, _ = update(tree, state)
    again, _ = update(tree, start(reduce, tree))
    np.testing.assert_array_equal(first["w"], again["w"])
    assert not np.array_equal(first["w"][0, :FAULTY], second["w"][0, :FAULTY])
    assert not np.array_equal(first["w"][0, 0], first["w"][0, 1])
    with pytest.raises(ValueError, match="key must be given for an attacker that draws, got None"):
        over_vmap(lambda axis: hostile(seeing(axis), attackers.gaussian(), FAULTY), tree)


def test_leaves_keep_their_dtypes():
    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float64):
            tree = gradients(dtype)
            seen, _ = over_vmap(lambda axis: hostile(seeing(axis), attackers.sign_flip(2.0), FAULTY), tree)
            assert seen["w"].dtype == jnp.float32
            assert seen["b"].dtype == dtype
            # Doubling and changing the sign are exact.
            np.testing.assert_array_equal(seen["b"][0, :FAULTY], -2 * tree["b"][:FAULTY])
            np.testing.assert_array_equal(seen["b"][0, FAULTY:], tree["b"][FAULTY:])


def distance_after_descent(reduce, steps=50):
    """Workers minimize |x - target|^2 / 2, each with a slightly different target around 1."""
    targets = 1 + 0.01 * jax.random.normal(jax.random.key(0), (WORKERS, 3))

    def step(carry, _):
        x, state = carry
        reduced, state = jax.vmap(reduce.update, axis_name="data")(x - targets, state)
        return (x - 0.1 * reduced[0], state), None

    (x, _), _ = jax.lax.scan(step, (jnp.zeros(3), stacked(reduce.init(jnp.zeros(3)))), length=steps)
    return float(jnp.max(jnp.abs(x - 1)))


def test_mean_breaks_and_median_survives():
    median, attack = all_reduce("data", rule=rules.median()), attackers.sign_flip(10.0)
    assert distance_after_descent(hostile(exact_mean("data"), attack, faulty=2)) > 10
    assert distance_after_descent(hostile(median, attack, faulty=2)) < 0.05
    # Without hostile workers the mean arrives, and with a hostile majority the median does not.
    assert distance_after_descent(hostile(exact_mean("data"), attack, faulty=0)) < 0.05
    assert distance_after_descent(hostile(median, attack, faulty=5)) > 10


def test_what_is_not_finite_is_left_out_and_counted():
    tree = gradients()
    reduced, state = over_vmap(
        lambda axis: hostile(all_reduce(axis, rule=rules.median()), attackers.not_finite(), FAULTY), tree
    )
    assert state.shared.dropped.tolist() == [FAULTY] * WORKERS
    np.testing.assert_allclose(reduced["b"][0], np.median(tree["b"][FAULTY:], axis=0), rtol=1e-6)


def test_it_is_the_reduction_inside_in_all_but_what_is_sent():
    for inside in (exact_mean("data"), all_reduce(BOTH, rule=rules.median())):
        reduce = hostile(inside, attackers.sign_flip(), faulty=1)
        assert (reduce.axis, reduce.averages, reduce.combine) == (inside.axis, inside.averages, inside.combine)
        assert reduce.init is inside.init
    assert hostile(inside, attackers.sign_flip(), faulty=0) is inside


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="faulty must not be negative, got -1"):
        hostile(exact_mean("data"), attackers.sign_flip(), faulty=-1)
    with pytest.raises(ValueError, match="faulty must be less than the 8 workers, got 8"):
        over_vmap(lambda axis: hostile(exact_mean(axis), attackers.sign_flip(), faulty=8), gradients())
    with pytest.raises(ValueError, match=r"an attacker must send \(3, 19\), one row a faulty worker, got \(19,\)"):
        over_vmap(lambda axis: hostile(exact_mean(axis), lambda key, honest, own: honest[0], FAULTY), gradients())
