"""A reduction inside optax's chains: every wrapper, against the same chain fed with what was reduced by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust.aggregation import aggregate, all_reduce, codecs, joined_value, rules

WORKERS, STEPS, RATE = 5, 4, 0.1
PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.3, -0.7])}
MEDIAN = rules.median()


@pytest.fixture(autouse=True)
def strict_promotion():
    """Not here: optax's optimizers promote unasked."""


def targets():
    keys = jax.random.split(jax.random.key(0), 2)
    return {"w": jax.random.normal(keys[0], (WORKERS, 2, 2)), "b": jax.random.normal(keys[1], (WORKERS, 2))}


def loss(params, target):
    return sum(0.5 * jnp.sum((params[name] - target[name]) ** 2 * (1 + params[name] ** 2)) for name in params)


def joined(rows, rule=MEDIAN):
    """What the workers' gradients become."""
    flat = {name: row.reshape(WORKERS, -1) for name, row in rows.items()}
    column = aggregate(rule, jnp.concatenate([flat[name] for name in sorted(flat)], axis=1))
    sizes = np.cumsum([flat[name].shape[1] for name in sorted(flat)])
    parts = jnp.split(column, sizes[:-1])
    return {name: part.reshape(rows[name].shape[1:]) for name, part in zip(sorted(flat), parts, strict=True)}


def mean_loss(params):
    return jnp.mean(jax.vmap(loss, (None, 0))(params, targets()))


def distributed(make, rule=MEDIAN, value_of=joined_value):
    """Every worker runs the chain under a mapped axis."""
    chain = optax.with_extra_args_support(make(all_reduce("data", rule=rule)))

    def step(params, state, target):
        own_value, gradient = jax.value_and_grad(loss)(params, target)
        value, mean = jax.lax.pmean((own_value, gradient), "data")
        value_fn = value_of(lambda p: loss(p, target), lambda tree: jax.lax.pmean(tree, "data"))
        extra = {"value": value, "grad": mean, "value_fn": value_fn}
        updates, state = chain.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (WORKERS, *leaf.shape)), PARAMS)
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (WORKERS, *jnp.shape(leaf))), chain.init(PARAMS))
    mapped = jax.jit(jax.vmap(step, axis_name="data"))
    for _ in range(STEPS):
        params, state = mapped(params, state, targets())
    for leaf in jax.tree.leaves(params):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
    return jax.tree.map(lambda leaf: leaf[0], params)


def by_hand(make, join=joined):
    """The chain behind the reduction alone, fed with what the gradients became."""
    chain = optax.with_extra_args_support(make(optax.identity()))

    @jax.jit
    def step(params, state):
        rows = jax.vmap(jax.grad(loss), (None, 0))(params, targets())
        extra = {"value": mean_loss(params), "grad": jax.grad(mean_loss)(params), "value_fn": mean_loss}
        updates, state = chain.update(join(rows), state, params, **extra)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, chain.init(PARAMS)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params


def only(name):
    return {key: key == name for key in PARAMS}


def by_label(reduce):
    # Weights are reduced and descend, biases take the workers' mean by another reduction.
    parts = {"w": optax.chain(reduce, optax.sgd(RATE)), "b": optax.chain(reduce, optax.adam(RATE))}
    return optax.partition(parts, {"w": "w", "b": "b"})


CHAINS = {
    "sgd": lambda reduce: optax.chain(reduce, optax.sgd(RATE, momentum=0.9)),
    "adamw": lambda reduce: optax.chain(reduce, optax.adamw(RATE)),
    "clip after": lambda reduce: optax.chain(reduce, optax.clip_by_global_norm(0.5), optax.sgd(RATE)),
    "inject_hyperparams": lambda reduce: optax.chain(
        reduce, optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(RATE, 0.0, 10))
    ),
    "multi_transform": by_label,
    "apply_if_finite": lambda reduce: optax.apply_if_finite(optax.chain(reduce, optax.sgd(RATE)), 3),
    "several steps behind": lambda reduce: optax.chain(
        reduce, optax.MultiSteps(optax.sgd(RATE), 2).gradient_transformation()
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_do_what_they_do_to_one_gradient(name):
    found, expected = distributed(CHAINS[name]), by_hand(CHAINS[name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    # The control: another rule leads elsewhere.
    other = distributed(CHAINS[name], rules.mean())
    assert any(not np.allclose(other[key], expected[key], rtol=1e-3) for key in PARAMS)


SEARCHES = {
    "backtracking": lambda reduce: optax.chain(
        reduce, optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=10)
    ),
    "polyak": lambda reduce: optax.chain(reduce, optax.polyak_sgd(max_learning_rate=RATE)),
    "zoom": lambda reduce: optax.chain(reduce, optax.sgd(1.0), optax.scale_by_zoom_linesearch(max_linesearch_steps=10)),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_behind_a_mean_see_the_mean_loss(name):
    average = jax.tree_util.Partial(joined, rule=rules.mean())
    found, expected = distributed(SEARCHES[name], rules.mean()), by_hand(SEARCHES[name], average)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    assert mean_loss(found) < mean_loss(PARAMS)


def test_a_search_by_the_gradient_of_a_plain_mean_leads_workers_apart():
    """The control of `joined_value`."""

    def plain(value_fn, combine):
        return lambda params: combine(value_fn(params))

    with pytest.raises(AssertionError):
        distributed(SEARCHES["zoom"], rules.mean(), plain)


def test_a_mask_reduces_some_leaves_and_leaves_the_others():
    # What is not reduced must be made equal by something else: here it is set to zero.
    def make(reduce):
        return optax.chain(
            optax.masked(reduce, only("w")), optax.masked(optax.set_to_zero(), only("b")), optax.sgd(RATE)
        )

    def join(rows):
        return {"w": joined({"w": rows["w"]})["w"], "b": rows["b"][0]}

    found, expected = distributed(make), by_hand(make, join)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    np.testing.assert_array_equal(found["b"], PARAMS["b"])


@pytest.mark.parametrize(
    "codec", [codecs.float32(), codecs.qsgd(4, 8), codecs.alq(3, 8)], ids=["whole", "packed", "adaptive"]
)
def test_a_label_that_no_leaf_bears_is_no_work(codec):
    reduce = all_reduce("data", codec=codec, rule=MEDIAN, key=jax.random.key(0))
    chain = optax.partition({"reduced": reduce, "own": optax.sgd(RATE)}, {"w": "own", "b": "own"})
    step = jax.vmap(lambda rows, state: chain.update(rows, state)[0], (0, None), axis_name="data")
    updates = step(targets(), chain.init(PARAMS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -RATE * b, rtol=1e-6), updates, targets())


def test_a_value_is_joined_as_a_reduction_joins_metrics():
    reduce = all_reduce("data", rule=MEDIAN)

    def slope(target):
        value = joined_value(lambda x: (x - target) ** 2, lambda tree: reduce.combine(tree, reduce.init(target)))
        return jax.value_and_grad(value)(0.0)

    values, slopes = jax.vmap(slope, axis_name="data")(jnp.array([1.0, 3.0, 100.0]))
    assert (values.tolist(), slopes.tolist()) == ([9.0] * 3, [-6.0] * 3)


def test_clipping_before_the_reduction_is_each_workers_own():
    clip = optax.clip_by_global_norm(0.5)

    def join(rows):
        return joined(jax.vmap(lambda row: clip.update(row, clip.init(row))[0])(rows))

    found = distributed(lambda reduce: optax.chain(clip, reduce, optax.sgd(RATE)))
    expected = by_hand(lambda reduce: optax.chain(reduce, optax.sgd(RATE)), join)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    after = by_hand(CHAINS["clip after"])
    assert not np.allclose(after["w"], expected["w"], rtol=1e-3)


def test_several_steps_around_the_reduction_use_the_wire_once():
    """Gradients add up on each worker; the reduction then joins their means."""

    def make(reduce):
        return optax.MultiSteps(optax.chain(reduce, optax.sgd(RATE)), 2).gradient_transformation()

    found = distributed(make)
    # Parameters rest between updates, so that two equal gradients are averaged: half as many steps.
    params = PARAMS
    for _ in range(STEPS // 2):
        step = joined(jax.vmap(jax.grad(loss), (None, 0))(params, targets()))
        params = jax.tree.map(lambda leaf, g: leaf - RATE * g, params, step)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, params)
