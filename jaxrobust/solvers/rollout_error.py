r"""How far a corrected solver goes astray: what the evaluate slot of a correction holds.

.. math:: \frac{1}{K} \sum_{k=1}^{K} \mathrm{mean} \, |u_k - r_k|, \quad u_k = P(u_{k-1}) + C(P(u_{k-1})), \; u_0 = r_0

with P the solver, C the corrector and r the reference; the mean is over the numbers of a state.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.objectives.solver_in_the_loop import Solver
from jaxrobust.typing import Array, Evaluated, Evaluation, Key, Predict, PyTree, Source


def rollout_error(solver: Solver, *, batch_size: int = 16) -> Evaluation:
    """Build an evaluation of rollouts, each from the first state of its window alone.

    Args:
      solver: P, of ONE state; a `black_box` is one.
      batch_size: windows that go side by side; changes no result.

    Returns:
      `(key, predict, source) -> Evaluated`, for a source of windows in order (`data.windows(..., shuffle=False)`); a
      window's length is the horizon. Its metrics are "rollout_loss", the mean absolute error over all steps, and
      "final_loss", that of the last step; neither is finite where a rollout is not.

    Raises:
      ValueError: for a batch size below 1.

    Example:
      >>> import jax, numpy as np
      >>> from jaxrobust import data
      >>> source = data.windows(np.array([[[1.0], [2.0], [4.0]]], np.float32), 2, shuffle=False)
      >>> evaluate = rollout_error(lambda state: state + 0.5)  # 1.5 and 2, where 2 and 4 would be right
      >>> evaluate(jax.random.key(0), lambda solved: 0 * solved, source).metrics
      {'rollout_loss': 1.25, 'final_loss': 2.0}
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")

    def errors(predict: Predict, start: PyTree, reference: PyTree) -> Array:
        """`[batch, step]`."""
        found = corrected_steps(solver, predict, start, jax.tree.leaves(reference)[0].shape[1])
        apart = jax.tree.map(lambda one, two: jnp.abs(one - two).reshape(*one.shape[:2], -1), found, reference)
        return jnp.mean(jnp.concatenate(jax.tree.leaves(apart), -1), -1)

    def evaluate(key: Key, predict: Predict, source: Source) -> Evaluated:
        predict = predict if isinstance(predict, jax.tree_util.Partial) else jax.tree_util.Partial(predict)
        state, rows, compiled, found = source.init(key), jnp.arange(batch_size), jax.jit(errors), []
        for step in range(-(-source.size // batch_size)):
            batch = source.batch(state, step, rows, batch_size)
            found.append(np.asarray(compiled(predict, batch.inputs, batch.targets))[np.asarray(batch.weight) > 0])
        by_step = np.concatenate(found).mean(0)
        return Evaluated({"rollout_loss": float(by_step.mean()), "final_loss": float(by_step[-1])}, {}, None)

    return evaluate


def corrected_steps(solver: Solver, correct: Callable[[PyTree], PyTree], start: PyTree, steps: int) -> PyTree:
    """A corrected solver, left to itself.

    Args:
      solver: P, of ONE state.
      correct: C, of a batch of solved states `[batch, ...]`.
      start: states `[batch, ...]`.
      steps: how many.

    Returns:
      The states after each step, `[batch, step, ...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> corrected_steps(lambda state: 2 * state, lambda solved: solved + 1, jnp.ones((1, 1)), 2).tolist()
      [[[5.0], [21.0]]]
    """

    def move(current: PyTree, _: None) -> tuple[PyTree, PyTree]:
        solved = jax.vmap(solver)(current)
        found = jax.tree.map(jnp.add, solved, correct(solved))
        return found, found

    _, states = jax.lax.scan(move, start, length=steps)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), states)
