r"""Steepest descent in a chosen norm.

.. math:: \theta_{t+1} = \theta_t + \eta_t \arg\min_d \left( \langle g_t, d \rangle + \tfrac12 \|d\|^2 \right)
          = \theta_t - \eta_t \, \|g_t\|_* \, s(g_t), \quad s(g) = \arg\max_{\|d\| \le 1} \langle g, d \rangle

with ||.||_* the dual norm. In l2 it is gradient descent; in l-infinity every coordinate moves by eta ||g||_1 against
its sign; in l1 only the largest coordinate moves. For a linear model, separable data, a loss with an exponential tail
and steps that are small enough, it tends to the classifier of the largest margin in that norm, and so chooses which
perturbations the model withstands.
"""

import jax
import jax.numpy as jnp
import optax

from jaxrobust.geometry import Geometry
from jaxrobust.trees import as_one_array
from jaxrobust.typing import Params, PyTree


def steepest_descent(
    geometry: Geometry, learning_rate: optax.ScalarOrSchedule, *, normalized: bool = False, per_leaf: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Descend in a norm.

    .. math:: \Delta \theta = -\eta \, \|g\|_* \, s(g), \quad \text{normalized: } \Delta \theta = -\eta \, s(g)

    Normalized steps go on at full length when the loss, and with it the gradient, vanishes: for a linear classifier,
    separable data, the exponential loss and the l2 norm, eta falling as :math:`1 / \sqrt t` brings the margin to the
    largest one at the rate :math:`\log t / \sqrt t`, against :math:`1 / \log t` without. For a line search, chain
    `optax.scale_by_backtracking_linesearch` behind with a learning rate of 1.

    Args:
      geometry: the norm; of all parameters as one vector (one array keeps its shape), or of each leaf.
      learning_rate: eta > 0, or a schedule of it.
      normalized: whether a step's norm is eta itself, whatever the gradient's.
      per_leaf: whether the norm of the parameters is the largest of their leaves' norms (the dual norm then the sum of
        the leaves'), each leaf with its shape. `spectral` needs it where there are several leaves. The Fourier norms
        take leaves of at least two axes: give the others another optimizer by `optax.partition`.

    Returns:
      An optax transformation.

    Raises:
      ValueError: for a learning rate that is not positive; in `update`, for several leaves that a norm of shaped
        arrays would see as one vector.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> optimizer = steepest_descent(geometry.linf(), learning_rate=0.5)
      >>> gradient = jnp.array([1.0, -3.0])
      >>> optimizer.update(gradient, optimizer.init(gradient))[0].tolist()
      [-2.0, 2.0]

    Reference: Gunasekar, Lee, Soudry and Srebro, "Characterizing Implicit Bias in Terms of Optimization Geometry",
    https://arxiv.org/abs/1802.08246, 2018; normalized steps: Nacson, Lee, Gunasekar, Savarese, Srebro and Soudry,
    "Convergence of Gradient Descent on Separable Data", https://arxiv.org/abs/1803.01905, 2019; for
    robustness Faghri, Gowal, Vasconcelos, Fleet, Pedregosa and Le Roux, "Bridging the Gap Between Adversarial
    Robustness and Optimization Bias", https://arxiv.org/abs/2102.08868, 2021.
    """
    if not callable(learning_rate) and not isinstance(learning_rate, jax.core.Tracer) and not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")

    def direction(gradients: PyTree, params: Params | None = None) -> PyTree:
        del params
        if per_leaf:
            steps = jax.tree.map(geometry.steepest, gradients)
            if normalized:
                return steps
            leaves = jax.tree.leaves(gradients)
            widest = max((leaf.dtype for leaf in leaves), key=lambda dtype: jnp.finfo(dtype).bits)
            length = sum(geometry.dual_norm(leaf).astype(widest) for leaf in leaves)
            return jax.tree.map(lambda step: jnp.asarray(length, step.dtype) * step, steps)
        if geometry.shaped and len(jax.tree.leaves(gradients)) > 1:
            raise ValueError(f"{geometry.name} looks at each leaf's shape: take per_leaf=True for several leaves")
        vector, restore = as_one_array(gradients)
        step = geometry.steepest(vector)
        return restore(step if normalized else geometry.dual_norm(vector) * step)

    return optax.with_extra_args_support(
        optax.chain(optax.stateless(direction), optax.scale_by_learning_rate(learning_rate))
    )
