"""Sparse steps in l1: the reference's traces, the rule of how many pixels, larger balls first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry
from jaxrobust.attacks import apgd_l1 as sparse
from jaxrobust.attacks.search import Answer, begin, step

from .golden import traces
from .recorded import as_strong, compare, withstanding

KEY = jax.random.key(0)
QUICK = {("at", "ce", 20), ("std", "dlr", 20), ("at", "dlr-targeted", 10)}
TRACES = [
    pytest.param(*trace, marks=() if trace in QUICK else pytest.mark.slow)
    for name in ("std", "at")
    for loss in ("ce", "dlr", "dlr-targeted")
    for trace in ((name, loss, steps) for steps in (10, 20, 100))
]


@pytest.mark.parametrize(("name", "loss", "steps"), TRACES)
def test_agreement_with_the_reference(name, loss, steps, shared, x64):
    """Nine examples of ten: the record counts as changed also the pixels that rounding changed."""
    found = compare(shared, name, "L1", loss, steps)
    assert np.all(found.flags)
    assert found.same.mean() >= 0.9


@pytest.mark.parametrize(
    "mistake", [{"SHRINK": 1.4}, {"SMALLEST": 0.5}, {"KEPT": 0.5}, {"KEPT": 1.1}, {"INTERVAL": 0.08}]
)
def test_each_mistake_leaves_the_trace(mistake, shared, x64, monkeypatch):
    for name, value in mistake.items():
        monkeypatch.setattr(sparse, name, value)
    assert compare(shared, "at", "L1", "ce", 100 if "INTERVAL" in mistake else 20).same.mean() < 0.8


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ranks_are_a_sorts(dtype, x64):
    sizes = np.abs(np.random.default_rng(0).standard_normal(37)).astype(dtype)
    sizes[:5], sizes[5:8], sizes[8] = 0, 0.5, np.inf
    ranked = jax.jit(jax.vmap(sparse._ranked, (None, 0)))(jnp.asarray(sizes), jnp.arange(37, dtype=jnp.int32))
    np.testing.assert_array_equal(ranked, np.sort(sizes))
    assert not np.array_equal(ranked, sizes)


def test_a_direction_by_hand():
    slope = jnp.array([[0.5, -2.0], [1.0, 0.0]])
    two = sparse._sparse_direction(slope, jnp.int32(2))
    np.testing.assert_allclose(two, [[0, -0.5], [0.5, 0]], rtol=1e-6)
    # What is zero has no sign, however many are to be taken; of no gradient comes no step.
    np.testing.assert_allclose(sparse._sparse_direction(slope, jnp.int32(0)), [[1 / 3, -1 / 3], [1 / 3, 0]], rtol=1e-6)
    assert not np.any(sparse._sparse_direction(jnp.zeros((2, 2)), jnp.int32(1)))


def test_the_plan_by_hand():
    one = sparse._plan(50, False)
    assert one.starting.nonzero()[0].tolist() == [0]
    assert one.checking.nonzero()[0].tolist() == list(range(2, 51, 2))
    assert one.last_ball.all()
    assert not one.ending.any()
    three = sparse._plan(10, True)
    assert three.radii.tolist() == [3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]
    assert three.starting.nonzero()[0].tolist() == [0, 4, 8]
    assert three.ending.nonzero()[0].tolist() == [3, 7]
    assert three.checking.sum() == 10
    assert three.last_ball.nonzero()[0].tolist() == [8, 9, 10, 11, 12]
    # 4 percent of a ball's own 30, 30 and 40 steps are one step; of 100 they were four.
    assert sparse._plan(100, True).checking.sum() == 100


def visited(search, images, labels, logits_fn):
    """Every state of run 0, `[question, batch]`."""

    @jax.jit
    def run(images, labels):
        keys = jax.random.split(KEY, len(images))
        state = begin(search, keys, images, labels, logits_fn(images), jnp.zeros(len(images), jnp.int32))
        return jax.lax.scan(
            lambda state, _: (step(search, logits_fn, keys, state, images, labels), state), state, length=20
        )[1]

    return jax.device_get(run(images, labels))


def test_larger_balls_come_first_and_nothing_counts_there(images, labels, curved):
    radius = 2.0
    states = visited(attacks.apgd(geometry.l1(), radius, steps=10, larger_radius=True), images, labels, curved)
    sizes = np.abs(states.point.astype(np.float64) - np.asarray(images)).reshape(20, 6, -1).sum(-1)
    limits = radius * np.array([3] * 4 + [2] * 4 + [1] * 12)[:, None]
    assert np.all(sizes <= limits * (1 + 1e-6))
    np.testing.assert_allclose(sizes[[0, 4, 8]].max(1), [6, 4, 2], rtol=1e-5)
    # Each ball begins at the best point of the one before, brought in, and with the counts and the step of its own.
    memory = states.memory
    for first, times in ((4, 2), (8, 1)):
        best = memory.best[first]
        assert not np.allclose(best, states.point[first - 1], atol=1e-3)
        brought = jax.vmap(lambda image, point: geometry.project_l1_box(image, point, times * radius))(images, best)  # noqa: B023
        np.testing.assert_allclose(states.point[first], brought, atol=1e-6)
        np.testing.assert_array_equal(memory.step_size[first], times * radius)
    for first in (0, 4, 8):
        changed = np.sum(states.point[first] != np.asarray(images), axis=(1, 2, 3))
        np.testing.assert_array_equal(memory.changed[first], changed)
        np.testing.assert_array_equal(memory.left_out[first], np.clip((3 * 32 - 2 * changed) // 3, 0, 31))
        assert np.any(changed != 32)
    # Before the answer to the last ball's first point nothing is found, though far away everything is misclassified.
    far = np.argmax(np.asarray([curved(jnp.asarray(point)) for point in states.point[:8]]), -1) != np.asarray(labels)
    assert far.mean() > 0.9
    assert not states.broken[:9].any()
    np.testing.assert_array_equal(states.found[:9], np.broadcast_to(images, states.found[:9].shape))
    assert states.broken[-1].all()
    assert states.done[13:].all()
    assert not states.done[:13].any()
    found = np.abs(states.found.astype(np.float64) - np.asarray(images)).reshape(20, 6, -1).sum(-1)
    assert np.all(found <= radius * (1 + 1e-6))


def test_steps_shrink_to_a_tenth_of_their_own_ball(images):
    """Told again and again that no point is better, in the ball of three radii."""
    search = attacks.apgd(geometry.l1(), 2.0, steps=40, larger_radius=True)
    tell, label, logits = jax.jit(search.tell), jnp.int32(0), jnp.array([1.0, 0.0])
    state, sizes = jax.jit(search.init)(KEY, images[0], label, logits, jnp.int32(0)), []
    for value in range(12):
        state = tell(state, images[0], label, Answer(logits, jnp.float32(-value), jnp.ones_like(images[0])))
        sizes.append(float(state.memory.step_size))
    np.testing.assert_allclose(sizes[:4], [6, 6 / 1.5, 6 / 1.5**2, 6 / 1.5**3], rtol=1e-6)
    np.testing.assert_allclose(sizes[6:], 0.6, rtol=1e-6)


def test_a_start_of_ones_own_is_told_the_largest_ball(images, labels, curved):
    told = []

    def start(key, ball, image, radius):
        told.append(radius)
        return attacks.no_start(key, ball, image, radius)

    for larger in (False, True):
        search = attacks.apgd(geometry.l1(), 2.0, steps=10, start=start, larger_radius=larger)
        jax.eval_shape(lambda: search(KEY, curved, images, labels))  # noqa: B023
    assert told == [2.0, 6.0]


def test_how_many_pixels_a_step_changes(images):
    """A fifth at the method's own start; two thirds of what the start changed where someone chose it."""

    @jax.jit
    def begun(images):
        found = []
        for start in (None, attacks.uniform_start, attacks.no_start):
            search = attacks.apgd(geometry.l1(), 3.0, start=start)
            state = begin(search, jax.random.split(KEY, 6), images, *unused)
            found.append((state.point, state.memory.changed, state.memory.left_out))
        return found

    unused = (jnp.zeros(6, jnp.int32), jnp.zeros((6, 3)), jnp.zeros(6, jnp.int32))
    (_, _, own), (point, changed, left_out), (_, _, still) = begun(images)
    np.testing.assert_array_equal(own, 4 * 32 // 5)
    np.testing.assert_array_equal(changed, np.sum(point != images, axis=(1, 2, 3)))
    np.testing.assert_array_equal(left_out, (3 * 32 - 2 * changed) // 3)
    assert np.any(left_out != own)
    np.testing.assert_array_equal(still, 31)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("attack", "options"), [("apgd-ce", {"restarts": 5}), ("apgd-t", {"targets": 5})])
def test_as_strong_as_the_reference(attack, options, shared):
    name = "at"
    stored = traces(shared, name, "L1")
    flags = dict(zip(stored["individual_attacks"].tolist(), stored["flags_individual"], strict=True))[attack]
    radius = float(stored["eps"])
    one, again, largest = withstanding(shared, name, "L1", radius, larger_radius=True, **options)
    assert as_strong(one, flags, again)
    assert largest <= 1 + 1e-6
    smaller, again, _ = withstanding(shared, name, "L1", 0.8 * radius, larger_radius=True, **options)
    assert not as_strong(smaller, flags, again)
