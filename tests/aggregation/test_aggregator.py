"""Reductions inside optax's aggregating chains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

from jaxrobust.aggregation import all_reduce, as_aggregator, codecs, exact_mean, rules

WORKERS = 4


def gradients():
    keys = jax.random.split(jax.random.key(0), 2)
    return {"w": jax.random.normal(keys[0], (WORKERS, 3, 2)), "b": jax.random.normal(keys[1], (WORKERS, 5))}


def params():
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), gradients())


def process(reduce):
    return aggregating.process(optax.identity(), as_aggregator(reduce, WORKERS), optax.sgd(1.0))


def test_the_mean_is_optax_average():
    ours = process(exact_mean("worker"))
    theirs = aggregating.process(optax.identity(), aggregating.average_per_element_updates(), optax.sgd(1.0))
    found, _ = ours.update(gradients(), ours.init(params()))
    expected, _ = theirs.update(gradients(), theirs.init(params()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    median, _ = process(all_reduce("worker", rule=rules.median())).update(
        gradients(), process(all_reduce("worker", rule=rules.median())).init(params())
    )
    assert not np.allclose(median["w"], expected["w"], atol=1e-2)


def test_memories_are_kept_for_each_worker():
    reduce = all_reduce("worker", codec=codecs.error_feedback(codecs.sign(4)), key=jax.random.key(0))
    chain = process(reduce)
    update = jax.jit(chain.update)
    state, total = chain.init(params()), 0.0
    for _ in range(200):
        updates, state = update(gradients(), state)
        total = total + updates["w"]
    own = state[1].own.codec
    assert jax.tree.leaves(own)[0].shape == (WORKERS, 11)
    # What was sent so far differs from what was meant by the memories alone, which stay bounded.
    np.testing.assert_allclose(-total / 200, gradients()["w"].mean(0), atol=0.1)
    single, _ = chain.update(gradients(), chain.init(params()))
    assert np.abs(-single["w"] - gradients()["w"].mean(0)).max() > 0.1


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="workers must be positive, got 0"):
        as_aggregator(exact_mean("worker"), 0)
    with pytest.raises(ValueError, match="reduce must be over one axis"):
        as_aggregator(exact_mean(("data", "worker")), 2)
    aggregator = as_aggregator(exact_mean("worker"), 3)
    with pytest.raises(ValueError, match=r"per_elt_updates must have 3 rows in every leaf, got \[4\]"):
        aggregator.update(gradients(), aggregator.init(params()))
