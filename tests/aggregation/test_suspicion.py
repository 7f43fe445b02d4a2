"""Who stands out: faults are named, noise is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import ReduceState, all_reduce, attackers, codecs, hostile, rules
from jaxrobust.aggregation.suspicion import no_suspicion, suspect

WORKERS, DIMENSION, FAULTY = 8, 500, 3


def gradients(key, spread=1.0):
    """Around a common mean, with tails and layers of other sizes; workers' batches differ in noise too."""
    mean_key, noise_key, size_key = jax.random.split(key, 3)
    layers = jnp.exp(jnp.linspace(-3, 1, DIMENSION))
    sizes = jnp.exp(0.2 * spread * jax.random.normal(size_key, (WORKERS, 1)))
    # Student's t by its definition: `jax.random.t` rejects draws in a loop, and takes most of the time.
    normals = jax.random.normal(noise_key, (6, WORKERS, DIMENSION))
    noise = normals[0] / jnp.sqrt(jnp.mean(normals[1:] ** 2, axis=0))
    return 1e-2 * layers * (jax.random.normal(mean_key, (DIMENSION,)) + 2 * sizes * noise)


def looked_at(rows, before, step):
    none = jnp.zeros(WORKERS, bool)
    return suspect(rows, jnp.all(jnp.isfinite(rows), 1), none, before, step, None)


@functools.cache
def watched(steps, seed):
    """Suspicions in clean steps."""
    key = jax.random.key(seed)

    def step(state, number):
        return looked_at(gradients(jax.random.fold_in(key, number)), state, number), None

    return jax.jit(lambda: jax.lax.scan(step, no_suspicion(), jnp.arange(steps))[0])()


def test_at_most_one_false_alarm_in_a_thousand_clean_steps():
    state = watched(1000, seed=0)
    assert state.suspicions <= 1
    # It knows the usual spread by now.
    assert 0 < state.spread < 0.25


FAULTS = {
    "garbage": lambda key, row: 10 * jax.random.normal(key, row.shape),
    "flipped bit": lambda key, row: flip(key, row),
    "constant": lambda key, row: jnp.ones_like(row),
    "infinite": lambda key, row: row.at[7].set(jnp.inf),
    "overflowing": lambda key, row: jnp.full_like(row, 1e30),
}


def flip(key, row):
    """The highest bit of the exponent of one coordinate."""
    place = jax.random.randint(key, (), 0, row.size)
    word = jax.lax.bitcast_convert_type(row[place], jnp.uint32) ^ jnp.uint32(1 << 30)
    return row.at[place].set(jax.lax.bitcast_convert_type(word, jnp.float32))


@pytest.mark.parametrize("fault", FAULTS)
def test_the_faulty_worker_is_named_at_once_and_after_long_watching(fault):
    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def drill(key, before):
        rows = gradients(key)
        worker = jax.random.randint(key, (), 0, WORKERS)
        found = looked_at(rows.at[worker].set(FAULTS[fault](key, rows[worker])), before, jnp.int32(5))
        return (found.suspect == worker) & (found.suspect_step == 5)

    for before in (no_suspicion(), watched(100, seed=1)):
        assert np.mean(drill(jax.random.split(jax.random.key(2), 200), before)) >= 0.95


def test_a_usual_worker_is_not_named():
    """The control: the same drill with a worker's own gradient names nobody."""
    rows = gradients_of(2, 200)
    found = jax.jit(jax.vmap(lambda r: looked_at(r, no_suspicion(), jnp.int32(5))))(rows)
    assert np.mean(np.asarray(found.suspect) == -1) >= 0.99
    assert found.suspicions.sum() <= 1


def gradients_of(seed, steps):
    return jax.jit(jax.vmap(gradients))(jax.random.split(jax.random.key(seed), steps))


@functools.cache
def steps(reduce):
    along = ReduceState(None, 0)

    def step(state, row):
        reduced, state = jax.vmap(reduce.update, (0, along), (None, along), axis_name="data")(row, state)
        return state, reduced

    return jax.jit(lambda state, rows: jax.lax.scan(step, state, rows))


def run(reduce, rows):
    state = reduce.init(rows[0, 0])
    state = state._replace(own=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (WORKERS, *leaf.shape)), state.own))
    return steps(reduce)(state, rows)


@pytest.mark.parametrize("rule", [rules.mean(), rules.median(), rules.krum(faulty=1)])
def test_a_reduction_says_who_and_when(rule):
    rows = gradients_of(4, 20)
    reduce = all_reduce("data", codec=codecs.qsgd_inf(8, 64), rule=rule, key=jax.random.key(0))
    state, _ = run(reduce, rows)
    assert int(state.shared.suspicion.suspect) == -1
    lagging = rows.at[12:15, FAULTY].set(rows[11, FAULTY])
    state, _ = run(reduce, lagging)
    found = state.shared.suspicion
    # As long as in the step before, to the bit: three times.
    assert (int(found.suspect), int(found.suspect_step), int(found.suspicions)) == (FAULTY, 14, 3)
    loud = rows.at[9, FAULTY].mul(1e4)
    state, _ = run(reduce, loud)
    found = state.shared.suspicion
    assert (int(found.suspect), int(found.suspect_step), int(found.suspicions)) == (FAULTY, 9, 1)


def test_a_hostile_worker_is_named():
    rows = gradients_of(4, 5)
    reduce = hostile(all_reduce("data", rule=rules.median()), attackers.sign_flip(100.0), faulty=1)
    state, _ = run(reduce, rows)
    assert int(state.shared.suspicion.suspect) == 0


def test_where_all_repeat_themselves_nobody_lags():
    same = jnp.broadcast_to(gradients(jax.random.key(0)), (4, WORKERS, DIMENSION))
    state, _ = run(all_reduce("data", rule=rules.median()), same)
    assert int(state.shared.suspicion.suspicions) == 0


def test_zeros_again_are_no_gradient_that_is_late():
    rows = gradients_of(4, 5).at[:, FAULTY].set(0)
    state, _ = run(all_reduce("data", rule=rules.median()), rows)
    assert int(state.shared.suspicion.suspicions) == 0
    # The control: what it repeats is something.
    state, _ = run(all_reduce("data", rule=rules.median()), rows.at[:, FAULTY, 0].set(0.1))
    assert (int(state.shared.suspicion.suspect), int(state.shared.suspicion.suspicions)) == (FAULTY, 4)


def test_equal_lengths_are_no_repetition():
    """Clipped gradients are as long in each step, to the bit."""
    rows = gradients_of(4, 20)
    clipped = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    state, _ = run(all_reduce("data", rule=rules.median()), clipped)
    assert int(state.shared.suspicion.suspicions) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: jnp.sign(rows),
        lambda rows: jnp.stack([rows[0], -rows[0], rows[0], -rows[0]]),
        lambda rows: jnp.stack([rows[0, :, :256] * 2.0**power for power in range(4)]),
    ],
    ids=["signs", "turned round", "doubled"],
)
def test_gradients_whose_bits_are_alike_are_no_repetition(change):
    rows = change(gradients_of(4, 40))
    state, _ = run(all_reduce("data", rule=rules.median()), rows)
    assert int(state.shared.suspicion.suspicions) == 0
    # The control: the same worker's same gradient again is one.
    again = rows.at[-1, FAULTY].set(rows[-2, FAULTY])
    state, _ = run(all_reduce("data", rule=rules.median()), again)
    assert (int(state.shared.suspicion.suspect), int(state.shared.suspicion.suspicions)) == (FAULTY, 1)


def test_what_says_nothing_names_nobody():
    nothing = jnp.zeros((WORKERS, 3))
    state = no_suspicion()
    for step in range(3):
        state = looked_at(nothing, state._replace(spread=jnp.float32(0)), jnp.int32(step))
    assert int(state.suspicions) == 0
    state = looked_at(jnp.full((WORKERS, 3), jnp.nan), state, jnp.int32(3))
    assert int(state.suspicions) == 0
    # At the center of the others: nothing to fear.
    state = looked_at(jnp.zeros((WORKERS, 3)).at[0].set(1.0).at[1].set(-1.0), no_suspicion(), jnp.int32(0))
    assert int(state.suspect) not in range(2, WORKERS)
    # The control: one of them alone is not finite.
    assert int(looked_at(nothing.at[5].set(jnp.nan), no_suspicion(), jnp.int32(3)).suspect) == 5
