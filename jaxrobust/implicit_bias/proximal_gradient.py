r"""Explicit regularization by a norm: proximal gradient steps, plain and accelerated (FISTA).

.. math:: \min_\theta L(\theta) + \lambda \|\theta\|, \qquad
          \theta_{t+1} = \mathrm{prox}_{\eta \lambda \|\cdot\|}(y_t - \eta \nabla L(y_t))

By Moreau's identity the proximal map of a norm is what its dual's projection leaves:
:math:`\mathrm{prox}_{s \|\cdot\|}(v) = v - P_{\|\cdot\|_* \le s}(v)`. As lambda tends to 0 the direction of the
solution tends to the one that steepest descent in the same norm finds without any regularization.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrobust.geometry import Geometry
from jaxrobust.trees import as_one_array
from jaxrobust.typing import Array, Params, PyTree, State


def proximal(geometry: Geometry, x: Array, strength: Array | float) -> Array:
    r"""The point that trades distance for norm, :math:`\arg\min_u \tfrac12 \|u - x\|_2^2 + s \|u\|`.

    In l1 it is soft thresholding, in l2 shrinking as a block, in l-infinity cutting the largest entries, in the
    Fourier-l1 norm soft thresholding of the spectrum's moduli.

    Args:
      geometry: the norm; it must have a `dual`.
      x: ONE example, of any shape.
      strength: s, not negative.

    Returns:
      Of the shape and dtype of x.

    Raises:
      ValueError: for a negative strength, or a norm without `dual`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> proximal(geometry.l1(), jnp.array([3.0, -0.5]), 1.0).tolist()
      [2.0, 0.0]

    Reference: Parikh and Boyd, "Proximal Algorithms", https://web.stanford.edu/~boyd/papers/prox_algs.html, 2014,
    section 2.5.
    """
    if geometry.dual is None:
        raise ValueError(f"geometry must have a dual, got {geometry.name}")
    if isinstance(strength, (int, float)) and not strength >= 0:
        raise ValueError(f"strength must not be negative, got {strength}")
    return x - geometry.dual().project(x, strength)


class ProximalState(NamedTuple):
    """Where the iteration stands.

    Attributes:
      solution: the last proximal point, pytree like params; the parameters themselves run ahead of it.
      momentum: t of the acceleration, float32.
      rate: the last step size, float32; infinite before the first.
      count: steps done, int32.
    """

    solution: Params
    momentum: Array
    rate: Array
    count: Array


def proximal_gradient(
    geometry: Geometry,
    strength: float | Array,
    learning_rate: optax.ScalarOrSchedule,
    *,
    accelerated: bool = True,
    max_backtracking_steps: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Minimize a loss plus a norm of all parameters as one vector (one array keeps its shape).

    With :math:`t_1 = 1` and :math:`t_{k+1} = (1 + \sqrt{1 + 4 t_k^2}) / 2` the parameters are the extrapolated point
    :math:`y_{k+1} = \theta_k + \frac{t_k - 1}{t_{k+1}} (\theta_k - \theta_{k-1})`; the solution is
    `state.solution`, in which a sparse norm's zeros are exact.

    Args:
      geometry: the norm of the parameters; it must have a `dual`.
      strength: lambda, not negative.
      learning_rate: eta, positive, or a schedule of it; at most 1 / the Lipschitz constant of the loss's gradient.
      accelerated: whether to extrapolate (FISTA) or not (ISTA).
      max_backtracking_steps: how often a step may be halved until the loss at the proximal point is below its quadratic
        model, :math:`L(y) + \langle g, d \rangle + \|d\|^2 / 2 \eta`; if none is, the solution stays for that update.
        A search begins at twice the last step, at most at `learning_rate`: on a loss that flattens, such as the
        logistic one, steps grow far above 1 / the Lipschitz constant. `update` then needs `value=` and `value_fn=`.

    Returns:
      An optax transformation, the last of its chain: it needs `params`. Evaluate `state.solution`, not the parameters,
      which run ahead of it.

    Raises:
      ValueError: for a number out of its range, or a norm without `dual`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxrobust import geometry
      >>> optimizer, params = proximal_gradient(geometry.l1(), 1.0, 0.5), jnp.array([3.0, 0.25])
      >>> updates, state = optimizer.update(2 * params, optimizer.init(params), params)
      >>> state.solution.tolist()
      [0.0, 0.0]

    Reference: Beck and Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems",
    SIAM Journal on Imaging Sciences 2(1), https://doi.org/10.1137/080716542, 2009, section 4; steps that may grow:
    Scheinberg, Goldfarb and Bai, "Fast First-Order Methods for Composite Convex Optimization with Backtracking",
    Foundations of Computational Mathematics 14, https://doi.org/10.1007/s10208-014-9189-9, 2014.
    """
    if geometry.dual is None:
        raise ValueError(f"geometry must have a dual, got {geometry.name}")
    for name, value, bad in (
        ("strength must not be negative", strength, lambda value: not value >= 0),
        ("learning_rate must be positive", learning_rate, lambda value: not value > 0),
    ):
        if isinstance(value, (int, float)) and bad(value):
            raise ValueError(f"{name}, got {value}")

    def init(params: Params) -> ProximalState:
        return ProximalState(params, jnp.float32(1), jnp.float32(jnp.inf), jnp.int32(0))

    def update(
        updates: PyTree,
        state: State,
        params: Params | None = None,
        *,
        value: Array | None = None,
        value_fn: Callable[[Params], Array] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ProximalState]:
        del extra_args
        if params is None:
            raise ValueError("params must be given to update: the proximal map is taken at them")
        if max_backtracking_steps and (value is None or value_fn is None):
            raise ValueError("value and value_fn must be given to update: backtracking evaluates the loss")
        height: Any = value
        loss: Any = value_fn
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        ahead, restore = as_one_array(params)
        slope, _ = as_one_array(updates)
        last, _ = as_one_array(state.solution)
        rate = jnp.asarray(rate, ahead.dtype)
        if max_backtracking_steps:
            rate = jnp.minimum(rate, 2 * state.rate.astype(ahead.dtype))

        def reach(rate: Array) -> Array:
            return proximal(geometry, ahead - rate * slope, rate * jnp.asarray(strength, ahead.dtype))

        def too_far(carry: tuple[Array, Array]) -> Array:
            rate, halvings = carry
            moved = reach(rate) - ahead
            model = height + jnp.vdot(slope, moved) + jnp.vdot(moved, moved) / (2 * rate)
            # Not `>`: a step to where the loss is not a number is too far.
            return (halvings < max_backtracking_steps) & ~(loss(restore(ahead + moved)) <= model)

        halvings, ratio = jnp.int32(0), jnp.float32(1)
        if max_backtracking_steps:
            rate, halvings = jax.lax.while_loop(too_far, lambda c: (c[0] / 2, c[1] + 1), (rate, halvings))
            # Steps that change in size: t grows with the last step's share of this one.
            ratio = jnp.where(jnp.isinf(state.rate), 1, state.rate / rate.astype(jnp.float32))
        refused = (max_backtracking_steps > 0) & (halvings >= max_backtracking_steps)
        found = jnp.where(refused, last, reach(rate))
        momentum = (1 + jnp.sqrt(1 + 4 * ratio * state.momentum**2)) / 2
        share = ((state.momentum - 1) / momentum).astype(ahead.dtype) if accelerated else jnp.zeros((), ahead.dtype)
        step = restore(found + share * (found - last) - ahead)
        return step, ProximalState(restore(found), momentum, rate.astype(jnp.float32), state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)
