import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data

RUNS = np.arange(3 * 6 * 2, dtype=np.float32).reshape(3, 6, 2)


def whole(source, step=0):
    return source.batch(source.init(jax.random.key(0)), step, jnp.arange(source.size), source.size)


@pytest.mark.parametrize(
    ("steps", "stride", "firsts"), [(2, 1, [0, 1, 2, 3]), (2, 3, [0, 3]), (5, 1, [0]), (2, 2, [0, 2])]
)
def test_every_window_comes_in_order_and_none_crosses_trajectories(steps, stride, firsts):
    source = data.windows(RUNS, steps, stride=stride, shuffle=False)
    batch = whole(source)
    assert source.size == 3 * len(firsts)
    expected = [(run, first) for run in RUNS for first in firsts]
    np.testing.assert_array_equal(batch.inputs, [run[first] for run, first in expected])
    np.testing.assert_array_equal(batch.targets, [run[first + 1 : first + 1 + steps] for run, first in expected])
    chex.assert_type(list(batch), [jnp.float32, jnp.float32, jnp.int32, jnp.float32])
    assert batch.targets.shape == (source.size, steps, 2)


def test_training_windows_come_once_an_epoch_and_a_test_set_ends_in_padding():
    source = data.windows(RUNS, 2)
    first, second = (whole(source, step).index for step in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()
    shuffled = whole(source)
    test = data.windows(RUNS, 2, shuffle=False)
    in_order = whole(test)
    np.testing.assert_array_equal(shuffled.inputs, in_order.inputs[shuffled.index])
    np.testing.assert_array_equal(shuffled.targets, in_order.targets[shuffled.index])
    rows = test.batch(test.init(jax.random.key(0)), 1, jnp.arange(8), 8)
    assert rows.weight.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_states_may_be_trees():
    runs = {"velocity": RUNS, "pressure": RUNS[..., 0] * 2}
    batch = whole(data.windows(runs, 3, shuffle=False))
    np.testing.assert_array_equal(batch.inputs["pressure"], 2 * batch.inputs["velocity"][:, 0])
    np.testing.assert_array_equal(batch.targets["pressure"], 2 * batch.targets["velocity"][..., 0])
    assert batch.targets["velocity"].shape == (9, 3, 2)


def test_trajectories_are_held_once_and_are_no_constant_of_the_step():
    source = data.windows(np.zeros((10, 100, 4), np.float32), 50)
    state = jax.eval_shape(source.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.trajectories)) == 4000
    made = jax.make_jaxpr(lambda s, t: source.batch(s, t, jnp.arange(4), 4))(state, 0)
    assert sum(np.size(constant) for constant in made.consts) < 1000


def test_the_fingerprint_tells_windows_apart():
    prints = {
        data.windows(RUNS, 2).fingerprint,
        data.windows(RUNS, 3).fingerprint,
        data.windows(RUNS, 2, stride=2).fingerprint,
        data.windows(RUNS + 1, 2).fingerprint,
        data.windows({"u": RUNS}, 2).fingerprint,
        data.windows({"v": RUNS}, 2).fingerprint,
    }
    assert len(prints) == 6
    assert data.windows(RUNS.copy(), 2).fingerprint in prints


@pytest.mark.parametrize(
    ("runs", "steps", "stride", "said"),
    [
        (RUNS, 6, 1, r"steps must lie in \[1, 6\), for a trajectory has 6 states, got 6"),
        (RUNS, 0, 1, r"steps must lie in \[1, 6\)"),
        (RUNS, 2, 0, "stride must be positive, got 0"),
        (RUNS.astype(int), 2, 1, "trajectories must be floats, got int64: cast them"),
        (np.where(RUNS > 30, np.nan, RUNS), 2, 1, "trajectories must be finite, got a number that is not"),
        ({"a": RUNS, "b": RUNS[:, :4]}, 2, 1, "with one count and time"),
        (np.zeros(4), 2, 1, "with one count and time"),
    ],
)
def test_bad_trajectories_are_refused(runs, steps, stride, said):
    with pytest.raises(ValueError, match=said):
        data.windows(runs, steps, stride=stride)
