"""Black boxes inside JAX programs: gradients through them, and queries that fail."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from sklearn.linear_model import LogisticRegression

from jaxrobust import data
from jaxrobust.zeroth_order import black_box, coordinate, differentiable, low_rank, random_directions, seed_replay

KEY = jax.random.key(0)
MATRIX = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def outside(z):
    return np.tanh(z @ MATRIX)


def inside(z):
    return jnp.tanh(z @ MATRIX)


def network(function, params, inputs):
    hidden = jnp.tanh(inputs @ params["w"])
    return jnp.mean(jnp.sum(jax.vmap(function)(hidden) ** 2, axis=1) * params["scale"])


PARAMS = {"w": jax.random.normal(KEY, (4, 5)), "scale": jnp.float32(1.5)}
INPUTS = jax.random.normal(jax.random.key(1), (6, 4))


def test_what_lies_around_is_differentiated_as_ever_and_the_interface_costs_its_width():
    box = black_box(outside, (3,))
    inner = differentiable(box, coordinate(1e-2, central=True))
    found = jax.jit(jax.grad(lambda params: network(inner, params, INPUTS)))(PARAMS)
    exact = jax.grad(lambda params: network(inside, params, INPUTS))(PARAMS)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=2e-3), found, exact)
    assert np.abs(exact["w"]).max() > 0.1
    # Once forward, and both sides of five coordinates, for six examples: nobody needs the value once more.
    assert box.queries == 6 * (1 + 2 * 5)
    with pytest.raises(Exception, match="do not support JVP"):
        jax.grad(lambda params: network(box, params, INPUTS))(PARAMS)


def test_together_is_one_by_one():
    grads = []
    for batched in (False, True):
        inner = differentiable(black_box(outside, (3,), batched=batched), coordinate(1e-2, central=True))
        grads.append(jax.jit(jax.grad(lambda params, inner=inner: network(inner, params, INPUTS)))(PARAMS))
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-4), *grads)


def test_keys_pass_to_estimators_that_draw():
    inner = differentiable(black_box(outside, (3,)), random_directions(4))
    z = jnp.ones(5)

    def gradient(key):
        return jax.grad(lambda z: jnp.sum(inner(z, key)))(z)

    np.testing.assert_array_equal(gradient(KEY), gradient(KEY))
    assert np.abs(gradient(KEY) - gradient(jax.random.key(3))).max() > 1e-2


def broken(z):
    """Fails in three ways, each for another coordinate that moved."""
    moved = int(np.argmax(np.abs(z - 1.0))) if np.any(z != 1.0) else None
    if moved == 1:
        raise OSError("the service is away\nand more")
    if moved == 2:
        return np.zeros(7)
    if moved == 3:
        return np.nan
    return float(z @ MATRIX[:, 0])


def test_a_query_that_fails_harms_no_other():
    box = black_box(broken)
    found = coordinate(1e-2)(KEY, box, jnp.ones(5)).gradient
    assert np.isnan(found).tolist() == [False, True, True, True, False]
    np.testing.assert_allclose(found[jnp.array([0, 4])], MATRIX[[0, 4], 0], atol=1e-3)
    reasons = {failure.query: failure.reason for failure in box.failures}
    assert reasons == {
        2: "OSError: the service is away",
        3: "gave the shape (7,), not ()",
        4: "gave a number that is not finite",
    }
    updates, _ = optax.zero_nans().update(found, optax.zero_nans().init(found))
    assert np.isfinite(updates).all()


class Awkward:
    """Refuses to be an array, as a tensor with a gradient does."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("call detach first")


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("answer", [Awkward(), 10**400, "far", None, np.float64(1e300)], ids=lambda a: type(a).__name__)
def test_whatever_is_no_number_costs_a_query_and_no_more(answer, batched):
    def one(z):
        return answer if z[0] > 5 else float(z[0])

    box = black_box((lambda rows: [one(row) for row in rows]) if batched else one, batched=batched)
    found = jax.jit(jax.vmap(box))(jnp.array([[1.0], [9.0], [3.0]]))
    np.testing.assert_array_equal(found, [1.0, np.nan, 3.0])
    assert [failure.query for failure in box.failures] == [1]
    if isinstance(answer, Awkward):
        assert box.failures[0].reason == "gave Awkward, no numbers: RuntimeError: call detach first"


def test_a_batch_that_fails_as_a_whole_is_asked_one_by_one():
    def whole(rows):
        if len(rows) > 1 and np.any(rows[:, 0] > 8):
            raise MemoryError("too many")
        return rows[:, 0] * np.where(rows[:, 0] > 8, np.inf, 2.0)

    box = black_box(whole, batched=True)
    answers = jax.vmap(box)(jnp.array([[1.0], [9.0], [3.0]]))
    np.testing.assert_array_equal(answers, [2.0, np.nan, 6.0])
    assert [failure.query for failure in box.failures] == [1]


def test_a_policy_says_when_to_stop():
    patient, strict = black_box(broken, stop_after=3), black_box(broken, stop_after=1)
    coordinate(1e-2)(KEY, patient, jnp.ones(5)).gradient.block_until_ready()
    patient.check()
    found = coordinate(1e-2, chunk_size=1)(KEY, strict, jnp.ones(5)).gradient
    assert np.isnan(found).tolist() == [False, True, True, True, True]
    assert (strict.calls, strict.queries) == (4, 6)
    with pytest.raises(RuntimeError, match=r"failed in 2 of 6 queries, more than the 1 allowed; .* query 3: gave the"):
        strict.check()


def test_one_device_that_stops_leaves_no_other_waiting():
    box = black_box(broken, stop_after=0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    points = jnp.ones((8, 5)).at[2, 1].set(5.0)
    summed = jax.shard_map(
        lambda rows: jax.lax.psum(box(rows[0]), "data"), mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False
    )
    assert np.isnan(jax.jit(summed)(points))
    assert box.stopped


@pytest.mark.parametrize("make", [random_directions, seed_replay, low_rank])
def test_a_direction_without_an_answer_is_left_out(make):
    calls = []

    def sometimes(z):
        calls.append(0)
        if len(calls) == 4:
            raise OSError("away")
        return float(z @ MATRIX[:, 0])

    found = make(directions=400)(KEY, black_box(sometimes), jnp.ones(5)).gradient
    whole = make(directions=400)(KEY, lambda z: z @ MATRIX[:, 0], jnp.ones(5)).gradient
    assert np.isfinite(found).all()
    assert np.abs(found - whole).max() < 0.1 < np.abs(whole).max()
    assert np.isnan(make(directions=3)(KEY, lambda z: z.sum() * jnp.nan, jnp.ones(5)).gradient).all()


def test_one_example_without_an_answer_harms_no_other():
    def sometimes(z):
        if z[0] > 5:
            raise OSError("away")
        return np.tanh(z @ MATRIX)

    inner = differentiable(black_box(sometimes, (3,)), coordinate(2e-3))
    points = jnp.ones((4, 5)).at[:, 0].set(jnp.array([1.0, 4.9995, 1.0, 1.0]))
    found = jax.vmap(jax.grad(lambda z: jnp.sum(inner(z))))(points)
    assert np.isfinite(found).all()
    assert found[1, 0] == 0
    exact = jax.vmap(jax.grad(lambda z: jnp.sum(inside(z))))(points)
    np.testing.assert_allclose(found[jnp.array([0, 2, 3])], exact[jnp.array([0, 2, 3])], atol=5e-3)


def test_programs_may_work_in_place():
    def doubled(z):
        z *= 2
        return z.sum()

    box = black_box(doubled)
    assert jax.jit(box)(jnp.ones(3)) == 6
    assert box.failures == []


def test_a_loss_without_a_derivative_is_trained():
    """The 0-1 error of a linear classifier, smoothed by directions as wide as the margins."""
    inputs = jax.random.normal(jax.random.key(2), (200, 3))
    labels = inputs @ jnp.array([1.0, -2.0, 0.5]) > 0

    def errors(w):
        return jnp.mean(((inputs @ w) > 0) != labels)

    assert np.abs(jax.grad(lambda w: errors(w).astype(jnp.float32))(jnp.ones(3))).max() == 0
    chain, w = optax.sgd(1.0, momentum=0.9), jnp.array([-1.0, 1.0, 1.0])
    state, estimator = chain.init(w), random_directions(20, smoothing=0.3, antithetic=True)
    before = float(errors(w))
    step = jax.jit(lambda key, w: estimator(key, errors, w).gradient)
    for key in jax.random.split(KEY, 60):
        updates, state = chain.update(step(key, w), state, w)
        w = optax.apply_updates(w, updates)
    assert before > 0.4 > 0.05 > errors(w)


def test_through_scikit_learn():
    """Inputs are moved until a classifier outside JAX says another digit."""
    digits = data.digits()
    batch = digits.train.batch(digits.train.init(KEY), 0, jnp.arange(400), 400)
    images = np.asarray(batch.inputs).reshape(400, -1)
    outside = LogisticRegression(max_iter=500).fit(images, np.asarray(batch.targets))
    box = black_box(lambda rows: outside.predict_log_proba(rows), (10,), batched=True)
    inner = differentiable(box, coordinate(1e-2))
    label = int(outside.predict(images[:1])[0])
    gradient = jax.grad(lambda x: inner(x)[label])(jnp.asarray(images[0]))
    scores = images[0] @ outside.coef_.T + outside.intercept_
    shares = np.exp(scores - scores.max())
    expected = outside.coef_[label] - shares / shares.sum() @ outside.coef_
    np.testing.assert_allclose(gradient, expected, atol=0.02 * np.abs(expected).max() + 1e-3)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="dtype must be a float's, got int32"):
        black_box(outside, dtype=np.int32)
    with pytest.raises(ValueError, match="key must be given for an estimator that draws, got None"):
        differentiable(inside, random_directions())(jnp.ones(5))
    with pytest.raises(ValueError, match="dtype must be one that JAX has now, got float64"):
        black_box(outside, dtype=np.float64)
    with pytest.raises(ValueError, match="stop_after must not be negative, got -1"):
        black_box(outside, stop_after=-1)
    with pytest.raises(ValueError, match="inputs must be floats to have a derivative, got int32"):
        differentiable(inside, coordinate())(jnp.arange(5))
    with pytest.raises(ValueError, match="outputs must be floats to have a derivative, got int32"):
        differentiable(lambda z: jnp.argmax(z), coordinate())(jnp.ones(5))
