r"""Steepest descent in a chosen norm.

.. math:: \theta_{t+1} = \theta_t + \eta_t \arg\min_d \left( \langle g_t, d \rangle + \tfrac12 \|d\|^2 \right)
          = \theta_t - \eta_t \, \|g_t\|_* \, s(g_t), \quad s(g) = \arg\max_{\|d\| \le 1} \langle g, d \rangle

with ||.||_* the dual norm. In l2 it is gradient descent; in l-infinity every coordinate moves by eta ||g||_1 against
its sign; in l1 only the largest coordinate moves. On separable data it tends to the classifier of the largest margin in
that norm, and so chooses which perturbations the model withstands.
"""

import jax
import optax
from jax.flatten_util import ravel_pytree

from jaxrobust.geometry import Geometry
from jaxrobust.typing import Params, PyTree


def steepest_descent(
    geometry: Geometry, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    r"""Descend in a norm.

    .. math:: \Delta \theta = -\eta \, \|g\|_* \, s(g)

    Args:
      geometry: the norm, of all parameters as one vector.
      learning_rate: eta > 0, or a schedule of it.

    Returns:
      An optax transformation.

    Raises:
      ValueError: for a learning rate that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> optimizer = steepest_descent(geometry.linf(), learning_rate=0.5)
      >>> gradient = jnp.array([1.0, -3.0])
      >>> optimizer.update(gradient, optimizer.init(gradient))[0].tolist()
      [-2.0, 2.0]

    Reference: Gunasekar, Lee, Soudry and Srebro, "Characterizing Implicit Bias in Terms of Optimization Geometry",
    https://arxiv.org/abs/1802.08246, 2018; for robustness Faghri, Gowal, Vasconcelos, Fleet, Pedregosa and
    Le Roux, "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
    https://arxiv.org/abs/2102.08868, 2021.
    """
    if not callable(learning_rate) and not isinstance(learning_rate, jax.core.Tracer) and not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")

    def direction(gradients: PyTree, params: Params | None = None) -> PyTree:
        del params
        vector, unravel = ravel_pytree(gradients)
        return unravel(geometry.dual_norm(vector) * geometry.steepest(vector))

    return optax.with_extra_args_support(
        optax.chain(optax.stateless(direction), optax.scale_by_learning_rate(learning_rate))
    )
