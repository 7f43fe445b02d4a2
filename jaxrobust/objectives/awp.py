r"""Adversarial weight perturbation: any objective at the worst weights nearby.

.. math:: \min_\theta\; \max_{\|v_l\| \le \gamma \|\theta_l\|} L(\theta + v)

with l the tensors of more than one dimension: biases and normalization layers stay as they are. One step of ascent,
normalized tensor by tensor, gives v; the gradient is taken at the perturbed weights and added to the others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust.geometry.norm import divided
from jaxrobust.typing import Array, Batch, Metrics, Model, Objective, Params, PyTree, State


class Perturbed(NamedTuple):
    """What is found once a step.

    Attributes:
      prepared: what the inner objective prepared, at the weights themselves.
      weights: added to the parameters, pytree like them.
    """

    prepared: PyTree
    weights: Params


def awp(objective: Objective, radius: float = 0.005, *, steps: int = 1) -> Objective:
    """Build an objective that sees perturbed weights.

    Where several workers share a batch, each finds the perturbation of its own part.

    Args:
      objective: the inner one, as `adversarial` or `trades` give it.
      radius: gamma, the largest length of a tensor's perturbation relative to the tensor's own, not negative; 0.005 in
        the paper's TRADES, 0.01 in its PGD training. 0 leaves the objective as it is.
      steps: of ascent, at least 1; 1 in the paper. One step has the length of the radius; of several each has 2.5 /
        steps of it, at most the whole, and what leaves the ball is projected back.

    Returns:
      The objective, with the inner one's metrics, measured at the perturbed weights.

    Raises:
      ValueError: for a number out of its range.

    Example:
      >>> from jaxrobust import geometry, objectives
      >>> objectives.awp(objectives.trades(geometry.linf(), 0.031)).coupled
      False

    Reference: Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization",
    https://arxiv.org/abs/2004.05884, 2020, algorithm 1. Its warm-up, some epochs of the inner objective alone, is left
    to the caller.
    """
    if not radius >= 0:
        raise ValueError(f"radius must not be negative, got {radius}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if radius == 0:
        return objective
    step_size = radius * min(1.0, 2.5 / steps)

    def prepare(keys: Array, model: Model, params: Params, state: State, batch: Batch) -> Perturbed:
        both = jax.vmap(jax.random.split)(keys)
        params, state = jax.lax.stop_gradient((params, state))
        prepared = objective.prepare(both[:, 0], model, params, state, batch)

        def loss(weights: Params) -> Array:
            moved = jax.tree.map(jnp.add, params, weights)
            losses, _ = objective.losses(prepared, both[:, 1], model, moved, state, batch)
            return jnp.mean(losses * batch.weight.astype(losses.dtype))

        weights = jax.tree.map(jnp.zeros_like, params)
        for _ in range(steps):
            weights = jax.tree.map(climb, params, weights, jax.grad(loss)(weights))
        return jax.lax.stop_gradient(Perturbed(prepared, weights))

    def climb(weight: Array, moved: Array, slope: Array) -> Array:
        if weight.ndim < 2:
            return moved
        length = _length(weight)
        moved = moved + step_size * length * divided(slope, _length(slope))
        return moved * jnp.minimum(1, divided(radius * length, _length(moved), at_zero=1))

    def losses(
        found: Perturbed, keys: Array, model: Model, params: Params, state: State, batch: Batch
    ) -> tuple[Array, tuple[State, Metrics]]:
        moved = jax.tree.map(jnp.add, params, jax.lax.stop_gradient(found.weights))
        return objective.losses(found.prepared, keys, model, moved, state, batch)

    return Objective(prepare, losses, objective.coupled)


def _length(x: Array) -> Array:
    return jnp.linalg.norm(x.reshape(-1))
