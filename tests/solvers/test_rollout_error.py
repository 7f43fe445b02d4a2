"""Rollouts of corrected solvers, each from its first state alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data, solvers
from jaxrobust.zeroth_order import black_box

RUNS = np.cumprod(np.full((5, 7, 3), 1.5), axis=1).astype(np.float32) * np.arange(1, 6, dtype=np.float32)[:, None, None]


def source(steps):
    return data.windows(RUNS, steps, stride=steps, shuffle=False)


def double(state):
    return 2 * state


def shrink(solved):
    return -0.2 * solved


def by_hand(steps):
    """1.6 a step where the reference has 1.5, from every beginning of a window."""
    starts = RUNS[:, : 7 - steps : steps, :, None]
    apart = np.abs(1.6 ** np.arange(1, steps + 1) - 1.5 ** np.arange(1, steps + 1))
    return (starts * apart).mean((0, 1, 2))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_errors_add_up_as_worked_by_hand(batch_size):
    evaluate = solvers.rollout_error(double, batch_size=batch_size)
    found = evaluate(jax.random.key(0), shrink, source(3))
    expected = by_hand(3)
    assert found.metrics == pytest.approx({"rollout_loss": expected.mean(), "final_loss": expected[-1]}, rel=1e-5)
    assert (found.curve, found.gallery) == ({}, None)
    # A rollout that is fed with the reference in place of its own states looks better than it is.
    fed = np.abs(1.6 - 1.5) * RUNS[:, :6].mean()
    assert found.metrics["rollout_loss"] > 1.3 * fed


def test_a_black_box_is_asked_once_for_a_batch_and_step():
    box = black_box(lambda rows: 2 * rows, (3,), batched=True)
    found = solvers.rollout_error(box, batch_size=5)(jax.random.key(0), shrink, source(3)).metrics
    assert found == pytest.approx(solvers.rollout_error(double)(jax.random.key(0), shrink, source(3)).metrics)
    # Ten windows, three steps.
    assert (box.calls, box.queries) == (6, 30)


def test_a_rollout_that_blows_up_is_not_hidden():
    found = solvers.rollout_error(double)(jax.random.key(0), lambda solved: jnp.exp(jnp.exp(solved)), source(3))
    assert not np.isfinite(found.metrics["rollout_loss"])


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        solvers.rollout_error(double, batch_size=0)
