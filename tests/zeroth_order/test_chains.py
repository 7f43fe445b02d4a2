"""An estimator at the head of optax's chains: every wrapper, against the same chain fed with exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust.aggregation import aggregate, all_reduce, rules
from jaxrobust.zeroth_order import activation, as_transform, coordinate

KEY, STEPS = jax.random.key(0), 5
PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.3, -0.7])}
INPUTS, TARGETS = jax.random.normal(jax.random.key(1), (12, 2)), jax.random.normal(jax.random.key(2), (12, 2))
EVERY = 2


@pytest.fixture(autouse=True)
def strict_promotion():
    """Not here: optax's optimizers promote unasked."""


def losses(params, rows=slice(None)):
    return jnp.sum((INPUTS[rows] @ params["w"] + params["b"] - TARGETS[rows]) ** 2, axis=1)


class Plain(optax.GradientTransformationExtraArgs):
    """The exact gradient in the estimator's place."""


def exact():
    def update(updates, state, params=None, *, value_fn=None, **extra):
        return jax.grad(lambda p: jnp.mean(value_fn(p)))(params), state

    return Plain(lambda params: (), update)


CHAINS = {
    "sgd": lambda head: optax.chain(head, optax.sgd(0.05)),
    "adamw": lambda head: optax.chain(head, optax.adamw(0.05, weight_decay=0.1)),
    "clipped": lambda head: optax.chain(head, optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)),
    "hyperparameters": lambda head: optax.chain(
        head, optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.1, 0.0, 5))
    ),
    "finite": lambda head: optax.chain(head, optax.apply_if_finite(optax.sgd(0.05), 2)),
    "multi steps behind": lambda head: optax.chain(
        head, optax.MultiSteps(optax.sgd(0.05), EVERY).gradient_transformation()
    ),
    "masked behind": lambda head: optax.chain(
        head, optax.masked(optax.scale(0.5), {"w": True, "b": False}), optax.sgd(0.05)
    ),
    "partition behind": lambda head: optax.chain(
        head, optax.partition({"a": optax.sgd(0.05), "z": optax.set_to_zero()}, {"w": "a", "b": "z"})
    ),
}


def run(chain, value=losses, steps=STEPS):
    chain, params = optax.with_extra_args_support(chain), PARAMS
    state = chain.init(params)

    @jax.jit
    def step(params, state):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = chain.update(zeros, state, params, value_fn=value)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


def close(one, two):
    return all(np.allclose(a, b, atol=2e-3) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


@pytest.mark.parametrize("estimator", [coordinate(central=True), activation(central=True)], ids=["weights", "units"])
@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_behind_sees_what_it_would_of_exact_gradients(name, estimator):
    found, expected = run(CHAINS[name](as_transform(estimator, KEY))), run(CHAINS[name](exact()))
    assert close(found, expected)
    assert not close(found, PARAMS)
    # The control: half of the function is another one.
    assert not close(found, run(CHAINS[name](exact()), lambda params: losses(params, slice(4))))


def test_exact_and_estimated_leaves_together():
    hybrid = optax.chain(as_transform(coordinate(central=True), KEY, where={"w": True, "b": False}), optax.sgd(0.05))
    params, state = PARAMS, hybrid.init(PARAMS)
    for _ in range(STEPS):
        gradient = jax.grad(lambda p: jnp.mean(losses(p)))(params)
        known = {"w": jnp.full_like(gradient["w"], jnp.nan), "b": gradient["b"]}
        updates, state = hybrid.update(known, state, params, value_fn=losses)
        params = optax.apply_updates(params, updates)
    assert close(params, run(CHAINS["sgd"](exact())))


def test_workers_estimates_are_reduced():
    """Each of three workers has four examples; the median of their gradients is taken."""
    rule = rules.median()
    chain = optax.chain(as_transform(coordinate(central=True), KEY), all_reduce("data", rule=rule), optax.sgd(0.05))
    parts = jnp.arange(12).reshape(3, 4)

    def step(params, state, rows):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = chain.update(zeros, state, params, value_fn=lambda p: losses(p, rows))
        return optax.apply_updates(params, updates), state

    spread = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *jnp.shape(leaf))), (PARAMS, chain.init(PARAMS)))
    mapped = jax.jit(jax.vmap(step, axis_name="data"))
    params, state = spread
    expected = PARAMS
    for _ in range(STEPS):
        params, state = mapped(params, state, parts)
        grads = [jax.grad(lambda p, rows=rows: jnp.mean(losses(p, rows)))(expected) for rows in parts]
        joined = {
            name: aggregate(rule, jnp.stack([g[name].reshape(-1) for g in grads])).reshape(expected[name].shape)
            for name in expected
        }
        expected = optax.apply_updates(expected, jax.tree.map(lambda leaf: -0.05 * leaf, joined))
    for worker in range(3):
        assert close(jax.tree.map(lambda leaf, worker=worker: leaf[worker], params), expected)
    assert not close(expected, run(CHAINS["sgd"](exact())))


def test_a_value_that_is_not_finite_is_skipped():
    def broken(params):
        return losses(params) + jnp.where(params["b"][0] > 0.2, jnp.nan, 0.0)

    chain = CHAINS["finite"](as_transform(coordinate(), KEY))
    assert close(run(chain, broken, steps=2), PARAMS)
    assert not np.isfinite(run(CHAINS["sgd"](as_transform(coordinate(), KEY)), broken, steps=2)["w"]).all()


def test_around_the_link_others_see_what_comes_in():
    """The documented limits: the guard sees the incoming zeros, and the accumulator the last function alone."""

    def broken(params):
        return losses(params) * jnp.nan

    link = as_transform(coordinate(central=True), KEY)
    assert close(run(optax.chain(link, optax.apply_if_finite(optax.sgd(0.05), 2)), broken, steps=1), PARAMS)
    around = run(optax.apply_if_finite(optax.chain(link, optax.sgd(0.05)), 2), broken, steps=1)
    assert np.isnan(around["w"]).all()
    accumulated = optax.MultiSteps(optax.chain(link, optax.sgd(0.05)), 2).gradient_transformation()
    zeros, state = jax.tree.map(jnp.zeros_like, PARAMS), accumulated.init(PARAMS)
    for rows in (slice(4), slice(4, 12)):
        updates, state = accumulated.update(zeros, state, PARAMS, value_fn=lambda p, rows=rows: losses(p, rows))
    last = run(CHAINS["sgd"](exact()), lambda params: losses(params, slice(4, 12)), steps=1)
    assert close(optax.apply_updates(PARAMS, updates), last)


def test_the_count_of_queries_stays_at_its_largest():
    link = as_transform(coordinate(), KEY)
    state = link.init(PARAMS)._replace(queries=jnp.int32(2**31 - 5))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    _, state = link.update(zeros, state, PARAMS, value_fn=losses)
    assert int(state.queries) == 2**31 - 1
    _, state = link.update(zeros, link.init(PARAMS), PARAMS, value_fn=losses)
    assert int(state.queries) == 1 + sum(leaf.size for leaf in jax.tree.leaves(PARAMS))


def test_what_comes_before_sees_another_gradient():
    """A clip before the estimator clips nothing: the estimate replaces what it gave."""
    before = run(
        optax.chain(optax.clip_by_global_norm(1e-3), as_transform(coordinate(central=True), KEY), optax.sgd(0.05))
    )
    assert close(before, run(CHAINS["sgd"](exact())))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda link: optax.masked(link, {"w": True, "b": False}),
        lambda link: optax.partition({"z": link, "s": optax.sgd(0.1)}, {"w": "z", "b": "s"}),
    ],
)
def test_inside_of_what_takes_parameters_out_it_is_refused(wrap):
    with pytest.raises(ValueError, match=r"params must be whole, .* put the estimator outside, with where="):
        run(wrap(as_transform(coordinate(), KEY)), steps=1)
