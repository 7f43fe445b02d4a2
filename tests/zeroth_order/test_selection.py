"""Sparse estimates: how many coordinates, which, and what is right in expectation; scores that choose their share."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxrobust import data
from jaxrobust.typing import Estimator
from jaxrobust.zeroth_order import (
    black_box,
    coordinate,
    grasp,
    importance_selection,
    layerwise_densities,
    random_directions,
    uniform_selection,
    zero_order_grasp,
)

KEY = jax.random.key(0)
PARAMS = {"a": jnp.linspace(-1.0, 1.0, 40).reshape(8, 5), "b": jnp.linspace(1.0, 2.0, 10), "c": jnp.ones(3)}
DENSITIES = {"a": 0.1, "b": 0.25, "c": 1.0}


def value(params):
    return jnp.sum(jnp.sin(params["a"])) + jnp.sum(params["b"] ** 2) + 3 * jnp.sum(params["c"])


def estimates(selection, count, **options):
    """`[count]` estimates in a row, and the queries of one."""
    estimator, state, found = coordinate(1e-3, central=True, selection=selection, **options), None, []
    step = jax.jit(lambda state: estimator(KEY, value, PARAMS, state))
    state = estimator.init(PARAMS)
    for _ in range(count):
        one = step(state)
        state = one.state
        found.append(one.gradient)
    return jax.tree.map(lambda *rows: np.stack(rows), *found), int(one.queries)


def hits(rows):
    return (np.abs(rows) > 0).reshape(len(rows), -1)


def test_counts_are_exact_and_layers_keep_their_share():
    found, queries = estimates(uniform_selection(DENSITIES, KEY), 30)
    assert set(hits(found["a"]).sum(1)) == {4}
    assert set(hits(found["b"]).sum(1)) == {2}
    assert hits(found["c"]).all()
    assert queries == 1 + 2 * (4 + 2 + 3)
    exact = jax.grad(value)(PARAMS)
    chosen = hits(found["a"])
    np.testing.assert_allclose(
        found["a"].reshape(30, -1)[chosen], np.tile(exact["a"].reshape(-1), (30, 1))[chosen], atol=5e-3
    )
    # Each coordinate's turn comes.
    assert hits(found["a"]).any(0).sum() > 30


@pytest.mark.parametrize(("interval", "changes"), [(1, 5), (3, 1), (None, 0)])
def test_coordinates_are_drawn_anew_after_an_interval(interval, changes):
    found, _ = estimates(uniform_selection(DENSITIES, KEY, interval=interval), 6)
    chosen = hits(found["a"])
    assert sum((one != two).any() for one, two in itertools.pairwise(chosen)) == changes
    again, _ = estimates(uniform_selection(DENSITIES, KEY, interval=interval), 6)
    np.testing.assert_array_equal(found["a"], again["a"])
    other, _ = estimates(uniform_selection(DENSITIES, jax.random.key(1), interval=interval), 6)
    assert (hits(other["a"]) != chosen).any()


def within(rows, exact, errors):
    deviation = rows.std(0) / np.sqrt(len(rows))
    return np.all(np.abs(rows.mean(0) - exact) <= errors * deviation + 5e-3)


def test_rescaled_estimates_are_unbiased_and_published_ones_shrink():
    exact = np.asarray(jax.grad(value)(PARAMS)["a"])
    rescaled, _ = estimates(uniform_selection(DENSITIES, KEY, rescale=True), 2000)
    plain, _ = estimates(uniform_selection(DENSITIES, KEY), 2000)
    assert within(rescaled["a"], exact, 4.5)
    assert within(plain["a"], 0.1 * exact, 4.5)
    assert not within(plain["a"], exact, 4.5)


def test_importance_is_unbiased_whatever_the_weights():
    exact = np.asarray(jax.grad(value)(PARAMS)["b"])
    heavy = importance_selection(lambda params: jax.tree.map(jnp.square, params), 25, KEY)
    found, queries = estimates(heavy, 2000)
    assert within(found["b"], exact, 4.5)
    # Twenty-five draws over 53 coordinates, by the leaves' sizes, repeats included.
    assert queries == 1 + 2 * (19 + 5 + 1)
    drawn = hits(found["b"]).mean(0)
    assert drawn[-1] > 1.5 * drawn[0]


def test_a_leaf_without_weights_is_drawn_alike():
    sizes = importance_selection(lambda params: {name: 0 * leaf for name, leaf in params.items()}, 25, KEY)
    for one, leaf in zip(sizes.choose(jnp.int32(0), PARAMS), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_allclose(one.factors, leaf.size / one.indices.size, rtol=1e-6)
        assert len(set(one.indices.tolist())) > 1 or leaf.size < 6
    half = importance_selection(lambda x: jnp.arange(8.0) % 2, 400, KEY)
    (drawn,) = half.choose(jnp.int32(0), jnp.zeros(8))
    assert set(drawn.indices.tolist()) == {1, 3, 5, 7}


def test_a_resumed_run_goes_on_with_the_same_coordinates():
    estimator = coordinate(selection=uniform_selection(DENSITIES, KEY, interval=2))
    straight = estimator.init(PARAMS)
    for _ in range(5):
        straight = estimator(KEY, value, PARAMS, straight).state
    resumed = jnp.asarray(np.asarray(straight))
    one, two = (estimator(KEY, value, PARAMS, state).gradient["a"] for state in (straight, resumed))
    np.testing.assert_array_equal(one, two)
    assert int(straight) == 5


def test_densities_by_hand():
    scores = {"a": jnp.array([[9.0, -8.0, 7.0, 1.0]]), "b": jnp.array([[6.0, 0.5], [0.4, 0.3]]), "bias": jnp.zeros(3)}
    assert layerwise_densities(scores, 0.5) == {"a": 0.75, "b": 0.25, "bias": 1.0}
    assert layerwise_densities(scores, 0.0) == {"a": 1.0, "b": 1.0, "bias": 1.0}
    # A leaf whose scores are all small keeps one coordinate.
    assert layerwise_densities({"a": scores["a"], "z": jnp.zeros((2, 2))}, 0.5) == {"a": 1.0, "z": 0.25}
    assert layerwise_densities(scores, 0.5, always=lambda leaf: leaf.shape == (2, 2))["b"] == 1.0


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.9])
def test_equal_scores_keep_the_sparsity(sparsity):
    """A network whose last layer starts at zero has many scores of 0."""
    scores = {"a": jnp.zeros((10, 10)), "b": jnp.maximum(jnp.arange(100.0) - 49, 0).reshape(10, 10)}
    found = layerwise_densities(scores, sparsity)
    # A leaf keeps one at least.
    assert sum(100 * share for share in found.values()) == pytest.approx(200 * (1 - sparsity), abs=1.01)
    assert found["b"] > found["a"]


def test_a_lost_query_costs_its_own_score_alone():
    losses = lambda point: jnp.sum(jnp.arange(1.0, 7.0) * point**3)  # noqa: E731
    calls = []

    def sometimes(z):
        calls.append(0)
        if len(calls) == 4:
            raise OSError("away")
        return float(losses(z))

    box, point = black_box(sometimes), jnp.linspace(1.0, 2.0, 6)
    found, _ = zero_order_grasp(KEY, box, point, coordinate(chunk_size=1))
    exact, _ = zero_order_grasp(KEY, losses, point, coordinate(chunk_size=1))
    lost = np.flatnonzero(np.asarray(found) == 0)
    assert (len(lost), len(box.failures)) == (1, 1)
    # The others are not moved along the one that is not known, which in this function changes nothing for them but the
    # length of the step.
    np.testing.assert_allclose(np.delete(found, lost), np.delete(exact, lost), rtol=0.15)
    nothing, _ = zero_order_grasp(KEY, lambda point: losses(point) * jnp.nan, point, coordinate())
    assert np.isnan(nothing).all()
    with pytest.raises(ValueError, match="scores must be finite, got 6 of 6 that are not"):
        layerwise_densities({"w": nothing.reshape(2, 3)}, 0.5)


def digits_losses():
    source = data.digits().train
    batch = source.batch(source.init(KEY), 0, jnp.arange(256), source.size)
    inputs = batch.inputs.reshape(256, 64)
    first, second = jax.random.split(jax.random.key(3))
    params = {
        "a": jax.random.normal(first, (64, 32)) * jnp.sqrt(2 / 64),
        "b": jax.random.normal(second, (32, 10)) * jnp.sqrt(2 / 32),
        "c": jnp.zeros(32),
        "d": jnp.zeros(10),
    }

    def losses(params):
        hidden = jax.nn.relu(inputs @ params["a"] + params["c"])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["b"] + params["d"], batch.targets)

    return params, losses


def flat(tree):
    return np.abs(np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)]))


def overlap(one, two):
    """Share of the top tenth of one among that of the other."""
    top = [set(np.argsort(-values)[: values.size // 10]) for values in (one, two)]
    return len(top[0] & top[1]) / len(top[0])


def test_scores_agree_with_the_exact_ones_if_their_estimates_share_directions():
    params, losses = digits_losses()
    exact = flat(grasp(losses, params))
    size = exact.size
    assert size == 2410

    def scores(estimator):
        return flat(jax.jit(lambda params: zero_order_grasp(KEY, losses, params, estimator)[0])(params))

    by_coordinates = scores(coordinate())
    by_directions = scores(random_directions(size))
    assert overlap(by_coordinates, exact) >= 0.75
    assert overlap(by_directions, exact) >= 0.5

    def forgetful():
        """Directions of its own in each call, as released."""
        plain, calls = random_directions(size), []

        def estimate(key, value_fn, params, state):
            calls.append(0)
            return plain.estimate(jax.random.fold_in(key, len(calls)), value_fn, params, state)

        return Estimator(init=plain.init, estimate=estimate)

    noise = np.random.default_rng(0).normal(size=size) * flat(params)
    assert overlap(scores(forgetful()), exact) < 0.5
    assert overlap(noise, exact) < 0.5
    assert stats.spearmanr(by_coordinates, exact).statistic > stats.spearmanr(np.abs(noise), exact).statistic + 0.1


def test_queries_of_scores_are_counted():
    params, losses = digits_losses()
    _, queries = jax.eval_shape(lambda params: zero_order_grasp(KEY, losses, params, random_directions(7)), params)
    assert queries.shape == ()
    _, queries = zero_order_grasp(KEY, losses, params, random_directions(7))
    assert int(queries) == 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform_selection(0.5, KEY, interval=0), "interval must be positive, got 0"),
        (lambda: uniform_selection(0.0, KEY).choose(jnp.int32(0), PARAMS), r"densities must lie in \(0, 1\], got 0.0"),
        (
            lambda: uniform_selection({"a": 0.5}, KEY).choose(jnp.int32(0), PARAMS),
            "must have the 3 leaves of params, got 1",
        ),
        (lambda: importance_selection(lambda p: p, 0, KEY), "draws must be positive, got 0"),
        (lambda: layerwise_densities(PARAMS, 1.0), r"sparsity must lie in \[0, 1\), got 1.0"),
        (lambda: zero_order_grasp(KEY, value, PARAMS, coordinate(), step=0.0), "step must be positive, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
