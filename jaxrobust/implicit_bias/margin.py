r"""Margins of linear classifiers: how far their boundary is, in any norm.

The distance of x from the boundary of the score <w, x>, measured in a norm, is :math:`|\langle w, x \rangle|` over the
DUAL norm of w. So a classifier whose weights are small in one norm withstands perturbations of the dual one: weights
small in l1 withstand l-infinity, l2 withstands l2, l-infinity withstands l1, Fourier-l1 withstands Fourier-l-infinity.

Reference: Faghri, Gowal, Vasconcelos, Fleet, Pedregosa and Le Roux, "Bridging the Gap Between Adversarial Robustness
and Optimization Bias", https://arxiv.org/abs/2102.08868, 2021, section 3.
"""

import jax
import jax.numpy as jnp

from jaxrobust.geometry import Geometry
from jaxrobust.typing import Array, Predict


def signs(labels: Array) -> Array:
    """Classes {0, 1} or signs {-1, 1} as signs.

    Args:
      labels: `[batch]`.

    Returns:
      `[batch]`, 1 where the label is positive and -1 elsewhere, of JAX's default float type.

    Example:
      >>> import jax.numpy as jnp
      >>> signs(jnp.array([0, 1, -1])).tolist()
      [-1.0, 1.0, -1.0]
    """
    return jnp.where(jnp.asarray(labels) > 0, 1.0, -1.0)


def margin(weights: Array, inputs: Array, labels: Array, geometry: Geometry) -> Array:
    r"""The margin of a linear classifier, :math:`\min_i y_i \langle w, x_i \rangle / \|w\|`.

    Args:
      weights: w, of the shape of one input.
      inputs: `[batch, ...]`.
      labels: `[batch]`, classes {0, 1} or signs {-1, 1}.
      geometry: the norm of the WEIGHTS, the one that an optimizer descends in. The margin is the largest perturbation
        in its dual norm that changes no answer.

    Returns:
      A scalar; negative where an example is on the wrong side, nan for weights 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> margin(jnp.array([3.0, 5.0]), jnp.eye(2), jnp.array([1, 1]), geometry.l1()).tolist()
      0.375

    Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
    https://arxiv.org/abs/2102.08868, 2021, section 3.
    """
    scores = inputs.reshape(len(inputs), -1) @ weights.reshape(-1)
    return jnp.min(signs(labels).astype(scores.dtype) * scores) / geometry.norm(weights)


def robust_radius(logits_fn: Predict, inputs: Array, labels: Array, geometry: Geometry) -> Array:
    r"""How much an affine classifier withstands at each example, exactly.

    .. math:: r(x) = \min_{j \ne y} \frac{z_y(x) - z_j(x)}{\|\nabla (z_y - z_j)\|_*}

    No perturbation of smaller norm changes the answer, and one of any larger norm does, if pixels may take any value;
    within [0, 1] it is a lower bound.

    Args:
      logits_fn: `(inputs [batch, ...]) -> logits [batch, class]`, affine in its inputs.
      inputs: `[batch, ...]`.
      labels: `[batch]`, integer classes from 0 on.
      geometry: the norm of the PERTURBATIONS, the one that an attack climbs in. Its dual norm is taken of the map of
        every pair of classes.

    Returns:
      `[batch]`; 0 on the boundary, negative where the answer is wrong already.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> logits_fn = lambda x: jnp.stack([-x.sum(1), x.sum(1)], 1)
      >>> robust_radius(logits_fn, jnp.array([[0.25, 0.25]]), jnp.array([1]), geometry.linf()).tolist()
      [0.25]

    Reference: Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural
    networks", https://arxiv.org/abs/1511.04599, 2016, section 3 (affine classifiers).
    """
    logits = logits_fn(inputs)
    maps = jax.jacrev(lambda x: logits_fn(x[None])[0])(jnp.zeros(inputs.shape[1:], inputs.dtype))
    between = jax.vmap(jax.vmap(lambda one, other: geometry.dual_norm(one - other), (None, 0)), (0, None))(maps, maps)

    def single(z: Array, label: Array) -> Array:
        others, ahead = jnp.arange(len(z)) != label, z[label] - z
        # Two classes with one map never change places, unless they are level already.
        apart = jnp.where(ahead == 0, 0, jnp.sign(ahead) * jnp.inf)
        distances = jnp.where(between[label] > 0, ahead / jnp.where(between[label] > 0, between[label], 1), apart)
        return jnp.min(jnp.where(others, distances, jnp.inf))

    return jax.vmap(single)(logits, jnp.asarray(labels))
