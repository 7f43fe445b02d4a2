r"""FOAR: first-order adversarial regularization, the linear bound of the inner maximum in place of an attack.

.. math:: \ell(x) + \max_{\|\delta\| \le r} g^\top \delta = \ell(x) + r \|g\|_*, \qquad g = \nabla_x \ell(x)

In l-infinity the penalty is the sum of the gradient's absolute values. It says nothing of curvature: a network may
learn to be flat at the examples alone.
"""

import jax
import jax.numpy as jnp

from jaxrobust.geometry import Geometry
from jaxrobust.objectives.cross_entropy import hits, smoothed_cross_entropy
from jaxrobust.typing import Array, Batch, Metrics, Model, Objective, Params, State


def foar(geometry: Geometry, radius: float) -> Objective:
    """Build the objective of first-order adversarial regularization.

    The loss is that of a pass in training mode; the penalty is taken in evaluation mode (batch norm by the running
    statistics, as constants), where an example's gradient is its own.

    Args:
      geometry: the norm of the perturbations; the penalty is its dual.
      radius: of the ball, in units of the images' range [0, 1], positive.

    Returns:
      The objective, with the metrics "clean_accuracy" and "regularizer" (the penalty) on the training batch.

    Raises:
      ValueError: if the radius is not positive.

    Example:
      >>> from jaxrobust import geometry, objectives
      >>> objectives.foar(geometry.linf(), 8 / 255).coupled
      False

    Reference: Ma, Faghri, Papernot and Farahmand, "SOAR: Second-Order Adversarial Regularization",
    https://arxiv.org/abs/2004.01832, 2020 (the first-order analogue).
    """
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")

    def prepare(keys: Array, model: Model, params: Params, state: State, batch: Batch) -> tuple[()]:
        del keys, model, params, state, batch
        return ()

    def losses(
        prepared: tuple[()], keys: Array, model: Model, params: Params, state: State, batch: Batch
    ) -> tuple[Array, tuple[State, Metrics]]:
        del prepared, keys
        logits, after = model.apply(params, state, batch.inputs, train=True)
        slopes = input_gradient(model, params, state, batch.inputs, batch.targets)
        penalty = radius * jax.vmap(geometry.dual_norm)(slopes)
        found = smoothed_cross_entropy(logits, batch.targets, 0.0) + penalty
        return found, (after, {"clean_accuracy": hits(logits, batch.targets), "regularizer": penalty})

    return Objective(prepare, losses)


def input_gradient(model: Model, params: Params, state: State, images: Array, labels: Array) -> Array:
    """Each example's gradient of its own cross-entropy with respect to its image, in evaluation mode.

    Args:
      model: the network.
      params: its parameters.
      state: its state; what a pass makes of it is dropped.
      images: `[batch, ...]`.
      labels: `[batch]` integers.

    Returns:
      `[batch, ...]`, differentiable in the parameters and in the images.
    """

    def total(images: Array) -> Array:
        # No example's loss depends on another image, so the sum's gradient holds each one's own.
        return jnp.sum(smoothed_cross_entropy(model.apply(params, state, images, train=False)[0], labels, 0.0))

    return jax.grad(total)(images)
