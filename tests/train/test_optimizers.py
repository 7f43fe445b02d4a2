"""Any optax chain serves as optimizer: each is built, trains, and does what it is for."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust import geometry, implicit_bias, train, zeroth_order


def biases(tree):
    return jax.tree.map(lambda leaf: leaf.ndim == 1, tree)


def labels(tree):
    return jax.tree.map(lambda leaf: "bias" if leaf.ndim == 1 else "weight", tree)


CHAINS = {
    "adamw": lambda: optax.adamw(1e-3),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
    "multi_steps": lambda: optax.MultiSteps(optax.sgd(0.1), every_k_schedule=3).gradient_transformation(),
    "masked": lambda: optax.masked(optax.set_to_zero(), biases),
    "multi_transform": lambda: optax.multi_transform({"bias": optax.set_to_zero(), "weight": optax.sgd(0.1)}, labels),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(0.1, 0, 6)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 5),
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.1),
    "lookahead": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01), sync_period=2),
    "polyak": lambda: optax.polyak_sgd(max_learning_rate=0.1),
    "line_search": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=8)
    ),
    "lbfgs": lambda: optax.lbfgs(memory_size=3, linesearch=optax.scale_by_backtracking_linesearch(8)),
    "zoom": lambda: optax.lbfgs(memory_size=3),
    "steepest": lambda: implicit_bias.steepest_descent(geometry.l2(), 0.1),
    "zeroth_order": lambda: optax.chain(
        zeroth_order.as_transform(zeroth_order.random_directions(directions=4), jax.random.key(0)), optax.sgd(0.01)
    ),
}


def trained(experiment, chain, steps=6):
    trainer = train.prepare_training(replace(experiment, optimizer=chain), train.make_mesh(jax.devices()[:2]))
    state, reduction = trainer.init()
    first = jax.device_get(state.params["model"])
    source = trainer.place(experiment.data.init(jax.random.key(1)))
    history = [first]
    for _ in range(steps):
        state, reduction, metrics = trainer.step(state, reduction, source, ())
        history.append(jax.device_get(state.params["model"]))
    assert np.isfinite(metrics["loss"])
    assert int(state.failed) == -1
    for leaf in jax.tree.leaves(state.params):
        # What is said to be the same on all devices is so, to the bit.
        first, second = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        np.testing.assert_array_equal(first, second)
    return state, history


def moved(before, after):
    return {
        jax.tree_util.keystr(path): bool(np.any(leaf != other))
        for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    }


@pytest.mark.parametrize("name", CHAINS)
def test_an_optax_chain_trains(experiment, name):
    state, history = trained(experiment, CHAINS[name]())
    leaves = moved(history[0], history[-1])
    if name in ("masked", "multi_transform"):
        still = name == "masked"
        for path, did in leaves.items():
            assert did == ("kernel" in path) or (still and "bias" not in path), (path, did)
    else:
        assert any(leaves.values())
    if name == "multi_steps":
        assert not any(moved(history[0], history[2]).values())
        assert any(moved(history[2], history[3]).values())
    if name == "inject_hyperparams":
        rate = float(state.optimizer.hyperparams["learning_rate"])
        assert rate == pytest.approx(0.1 * (1 - 5 / 6), rel=1e-5)


def test_apply_if_finite_skips_a_step_that_is_not_finite_and_goes_on(experiment):
    """One poisoned step: with the wrapper the run goes on, without it (the control) the step is marked as failed."""
    poison = optax.GradientTransformation(
        lambda params: jnp.int32(0),
        lambda updates, count, params=None: (
            jax.tree.map(lambda leaf: jnp.where(count == 1, jnp.nan, leaf), updates),
            count + 1,
        ),
    )

    def outer(inner):
        return optax.chain(poison, inner)

    def run(optimizer):
        trainer = train.prepare_training(replace(experiment, optimizer=optimizer), train.make_mesh(jax.devices()[:1]))
        state, reduction = trainer.init()
        source = trainer.place(experiment.data.init(jax.random.key(1)))
        for _ in range(3):
            state, reduction, _ = trainer.step(state, reduction, source, ())
        return state

    assert int(run(outer(optax.apply_if_finite(optax.sgd(0.1), 5))).failed) == -1
    assert int(run(outer(optax.sgd(0.1))).failed) == 1
