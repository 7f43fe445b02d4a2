r"""Solver in the loop: a corrector that is trained on the states which it makes itself.

.. math:: \min_\theta E \; \frac{1}{K} \sum_{k=1}^{K} \mathrm{mean} (u_k - r_k)^2, \quad
          u_k = P(u_{k-1}) + C_\theta(P(u_{k-1})), \; u_0 = r_0

with P one step of a coarse solver, C the corrector and r_0 ... r_K a window of a reference trajectory; the mean is over
the numbers of a state. Outside the loop, each step starts from the reference in place of u_{k-1}: the corrector is then
fitted to the solver's error on states that it never meets when it runs alone, where its own errors add up.

The solver is any function: one that JAX differentiates, a `zeroth_order.black_box` for estimators of the gradient slot,
or a `zeroth_order.differentiable` one, whose estimates at the interface carry backpropagation through the loop. The
steps are a `scan`, which estimators that move one weight evaluate as a whole.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, Batch, Metrics, Model, Objective, Params, PyTree, State

Solver = Callable[[PyTree], PyTree]
"""One step of ONE state, a pytree of floats."""


def solver_in_the_loop(solver: Solver, *, supervised: bool = False) -> Objective:
    """Build the objective of solver correction.

    Args:
      solver: P, of ONE state; it is mapped over the batch, and a `black_box` then answers for all in one call.
      supervised: whether each step starts from the reference: training outside the loop. No derivative of the solver is
        needed then.

    Returns:
      The objective, for windows of trajectories: inputs are states `[batch, ...]`, targets the states that follow,
      `[batch, step, ...]`, and the model gives a state's correction. Its metric is "last_step_loss", the squared error
      of the last step.

    Raises:
      ValueError: when called, for targets that are no windows of the inputs' shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import models, objectives
      >>> from jaxrobust.typing import Batch
      >>> shift = models.function(lambda key, x: 0.0, lambda params, x: params + 0 * x)
      >>> batch = Batch(jnp.ones((1, 1)), jnp.array([[[2.0], [4.0]]]), jnp.zeros(1, int), jnp.ones(1))
      >>> for outside in (False, True):  # 1 -> 1.5 -> 2.0, and 1 -> 1.5, 2 -> 2.5
      ...     objective = objectives.solver_in_the_loop(lambda state: state + 0.5, supervised=outside)
      ...     objective.losses((), None, shift, 0.0, {}, batch)[0].tolist()
      [2.125]
      [1.25]

    Reference: Um, Brand, Fei, Holl and Thuerey, "Solver-in-the-Loop: Learning from Differentiable Physics to Interact
    with Iterative PDE-Solvers", https://arxiv.org/abs/2007.00016, 2020; without derivatives of the solver: Chen et al.,
    "DeepZero", https://arxiv.org/abs/2310.02025, 2024, section 5.
    """

    def prepare(keys: Array, model: Model, params: Params, state: State, batch: Batch) -> tuple[()]:
        del keys, model, params, state, batch
        return ()

    def losses(
        prepared: tuple[()], keys: Array, model: Model, params: Params, state: State, batch: Batch
    ) -> tuple[Array, tuple[State, Metrics]]:
        del prepared, keys
        steps = _steps_of(batch)

        def advance(current: PyTree, state: State) -> tuple[PyTree, State]:
            solved = jax.vmap(solver)(current)
            correction, state = model.apply(params, state, solved, train=True)
            return jax.tree.map(jnp.add, solved, correction), state

        def move(carry: tuple[PyTree, State], reference: PyTree) -> tuple[tuple[PyTree, State], Array]:
            current, state = advance(*carry)
            return (current, state), _squared_error(current, reference)

        if supervised:
            # All steps at once, as one batch: none needs another's result.
            starts = jax.tree.map(
                lambda first, rest: jnp.concatenate([first[:, None], rest[:, :-1]], 1), batch.inputs, batch.targets
            )
            merged = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (starts, batch.targets))
            found, state = advance(merged[0], state)
            errors = _squared_error(found, merged[1]).reshape(-1, steps).T
        else:
            references = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batch.targets)
            (_, state), errors = jax.lax.scan(move, (batch.inputs, state), references)
        return jnp.mean(errors, 0), (state, {"last_step_loss": errors[-1]})

    return Objective(prepare, losses)


def _squared_error(found: PyTree, reference: PyTree) -> Array:
    """Mean over the numbers of a state, `[batch]`."""
    squares = jax.tree.map(lambda one, two: ((one - two) ** 2).reshape(len(one), -1), found, reference)
    return jnp.mean(jnp.concatenate(jax.tree.leaves(squares), 1), 1)


def _steps_of(batch: Batch) -> int:
    """The number of steps of a batch's windows."""
    states, windows = jax.tree.flatten(batch.inputs), jax.tree.flatten(batch.targets)
    shapes = [(state.shape, window.shape) for state, window in zip(states[0], windows[0], strict=False)]
    steps = {window[1] for _, window in shapes if len(window) > 1}
    fit = all((*window[:1], *window[2:]) == state for state, window in shapes)
    if states[1] != windows[1] or len(steps) != 1 or not fit:
        raise ValueError(
            f"targets must be windows [batch, step, ...] of states like the inputs, got shapes "
            f"{jax.tree.map(jnp.shape, batch.targets)} for {jax.tree.map(jnp.shape, batch.inputs)}: see data.windows"
        )
    return steps.pop()
