"""Stratified sampling: unbiased for any partition, with the variance of its formula."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.sampling import loss_quantiles, stratified
from jaxrobust.typing import Batch, Source

VALUES = np.array([4.0, -1.0, 0.5, 9.0, 2.0, 2.5, -3.0])
ASSIGNMENT = np.array([0, 1, 1, 0, 1, 1, 0])
STRATA, SIZE = 2, len(VALUES)


def source_of(values=VALUES, order=None):
    order = np.arange(len(values)) if order is None else order

    def batch(state, step, rows, size):
        index = jnp.asarray(order, jnp.int32)[rows]
        return Batch(state[index], index, index, jnp.ones(rows.shape[0]))

    return Source(lambda key: jnp.asarray(values, jnp.float32), batch, len(values), fingerprint="abc")


def batches(source, steps, size):
    state = source.init(jax.random.key(0))
    draw = jax.vmap(lambda step: source.batch(state, step, jnp.arange(size), size))
    return jax.tree.map(np.asarray, jax.jit(draw)(jnp.arange(steps)))


def enumerated(assignment, strata):
    """Every equally likely batch of one draw a stratum: the estimates' values."""
    members = [np.flatnonzero(assignment == k) for k in range(strata)]
    weights = [strata * len(m) / len(assignment) for m in members]
    return np.array(
        [np.mean([w * VALUES[i] for w, i in zip(weights, drawn, strict=True)]) for drawn in itertools.product(*members)]
    )


def formula(assignment, strata, draws=1):
    members = [VALUES[assignment == k] for k in range(strata)]
    return sum(len(m) ** 2 * m.var() for m in members) / SIZE**2 / draws


@pytest.mark.parametrize("assignment", [ASSIGNMENT, np.array([0, 0, 0, 0, 0, 0, 1]), np.array([2, 1, 1, 0, 0, 0, 2])])
def test_enumeration_agrees_with_the_formulae(assignment):
    strata = assignment.max() + 1
    estimates = enumerated(assignment, strata)
    assert estimates.mean() == pytest.approx(VALUES.mean(), rel=1e-12)
    assert estimates.var() == pytest.approx(formula(assignment, strata), rel=1e-12)


@pytest.mark.parametrize("draws", [1, 3])
def test_batches_are_unbiased_with_the_variance_of_the_formula(draws):
    found = batches(stratified(source_of(), ASSIGNMENT, STRATA), 20_000, STRATA * draws)
    estimates = (found.weight * found.inputs).mean(1).astype(np.float64)
    variance = formula(ASSIGNMENT, STRATA, draws)
    assert abs(estimates.mean() - VALUES.mean()) < 4 * np.sqrt(variance / 20_000)
    squared = (estimates - VALUES.mean()) ** 2
    assert abs(squared.mean() - variance) < 4 * squared.std() / np.sqrt(20_000)
    # Without the weights the mean is that of the strata, not of the examples.
    assert abs(found.inputs.mean() - VALUES.mean()) > 4 * np.sqrt(variance / 20_000)


def test_rows_and_weights():
    found = batches(stratified(source_of(), ASSIGNMENT, STRATA), 2000, 4)
    np.testing.assert_array_equal(ASSIGNMENT[found.index], np.tile([0, 1, 0, 1], (2000, 1)))
    np.testing.assert_allclose(found.weight, np.tile([6 / 7, 8 / 7, 6 / 7, 8 / 7], (2000, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.inputs, VALUES[found.index])
    # Members of a stratum are equally likely: 4000 draws of stratum 0, 4 sigmas of a binomial count.
    counts = np.bincount(found.index[:, ::2].reshape(-1), minlength=SIZE)[ASSIGNMENT == 0]
    assert np.all(np.abs(counts - 4000 / 3) < 4 * np.sqrt(4000 * (1 / 3) * (2 / 3)))
    # The rows of one batch are separate draws.
    assert np.mean(found.index[:, 0] == found.index[:, 2]) == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 2000))


def test_a_worker_draws_its_rows_as_if_it_drew_them_all():
    source = stratified(source_of(), ASSIGNMENT, STRATA)
    state = source.init(jax.random.key(0))
    batch = jax.jit(source.batch, static_argnums=3)
    whole = batch(state, 5, jnp.arange(8), 8)
    halves = [batch(state, 5, rows, 8) for rows in (jnp.arange(4), jnp.arange(4, 8))]
    for one, parts in zip(whole, zip(*halves, strict=True), strict=True):
        np.testing.assert_array_equal(one, jnp.concatenate(parts))
    assert not np.array_equal(batch(state, 6, jnp.arange(8), 8).index, whole.index)
    assert (source.size, source.fingerprint) == (SIZE, "abc")


def test_keys_decide():
    source = stratified(source_of(), ASSIGNMENT, STRATA)
    draw = jax.jit(lambda state: source.batch(state, 0, jnp.arange(20), 20).index)
    one, same, other = (draw(source.init(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_weights_of_the_wrapped_source_are_kept():
    plain = source_of()
    halved = plain._replace(batch=lambda *a: plain.batch(*a)._replace(weight=jnp.full(a[2].shape, 0.5)))
    found = batches(stratified(halved, ASSIGNMENT, STRATA), 1, 2)
    np.testing.assert_allclose(found.weight, [[3 / 7, 4 / 7]], rtol=1e-6)


def losses(outputs, targets):
    return outputs


def test_refresh_groups_by_loss():
    reassign = loss_quantiles(STRATA, loss=losses, batch_size=2)
    source = stratified(source_of(), ASSIGNMENT, STRATA, reassign=reassign)
    state = source.init(jax.random.key(0))
    after = source.refresh(jax.random.key(1), state, jax.tree_util.Partial(lambda inputs: -inputs))
    assert after.source is state.source
    assert after.key is state.key
    order, offsets = np.asarray(after.order), np.asarray(after.offsets)
    assert offsets.tolist() == [0, 4, 7]
    assert VALUES[order[:4]].min() > VALUES[order[4:]].max()
    assert not np.array_equal(order, state.order)
    drawn = source.batch(after, 0, jnp.arange(2), 2)
    np.testing.assert_allclose(drawn.weight, [8 / 7, 6 / 7], rtol=1e-6)
    fixed = stratified(source_of(), ASSIGNMENT, STRATA)
    assert fixed.refresh(jax.random.key(1), state, lambda inputs: inputs) is state


def test_a_stratum_that_empties_weighs_nothing():
    def all_in_the_first(key, predict, examples, size):
        return jnp.zeros(size, jnp.int32)

    source = stratified(source_of(), ASSIGNMENT, STRATA, reassign=all_in_the_first)
    state = source.refresh(jax.random.key(1), source.init(jax.random.key(0)), jax.tree_util.Partial(lambda x: x))
    found = source.batch(state, 0, jnp.arange(4), 4)
    assert found.weight.tolist() == [2.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize(("size", "strata"), [(10, 3), (9, 6), (5, 5)])
def test_quantiles_are_as_equal_as_can_be(size, strata):
    values = np.random.default_rng(0).permutation(size).astype(np.float32)
    plain = source_of(values)

    def examples(index):
        return plain.batch(jnp.asarray(values), 0, index, size)

    group = np.asarray(loss_quantiles(strata, loss=losses, batch_size=4)(None, lambda x: x, examples, size))
    np.testing.assert_array_equal(group, values.astype(int) * strata // size)
    counts = np.bincount(group, minlength=strata)
    assert counts.max() - counts.min() <= 1
    assert counts.min() > 0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"assignment must hold 7 integers, got float64 of shape \(7,\)"):
        stratified(source_of(), VALUES, STRATA)
    with pytest.raises(ValueError, match=r"assignment must hold 7 integers, got int64 of shape \(6,\)"):
        stratified(source_of(), ASSIGNMENT[:6], STRATA)
    with pytest.raises(ValueError, match=r"assignment must lie in \[0, 1\), got 0 to 1"):
        stratified(source_of(), ASSIGNMENT, 1)
    with pytest.raises(ValueError, match=r"every stratum must have an example, got none in \[2\]"):
        stratified(source_of(), ASSIGNMENT, 3)
    with pytest.raises(ValueError, match="source must give example n at position n, got another order"):
        stratified(source_of(order=np.array([1, 0, 2, 3, 4, 5, 6])), ASSIGNMENT, STRATA)
    with pytest.raises(ValueError, match="batch size must be a multiple of 2 strata, got 3"):
        batches(stratified(source_of(), ASSIGNMENT, STRATA), 1, 3)
    with pytest.raises(ValueError, match="strata must be positive, got 0"):
        loss_quantiles(0)
    with pytest.raises(ValueError, match="strata must be at most the 4 examples, got 5"):
        loss_quantiles(5)(None, None, None, 4)
