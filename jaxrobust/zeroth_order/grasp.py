r"""Scores of parameters before training: how much the gradient's flow loses with each (GraSP).

.. math:: s = -\theta \odot (H g), \qquad H g \approx \frac{\hat g(\theta + h \, \hat g(\theta)) - \hat g(\theta)}{h}

The second form needs function values alone. Both of its estimates must look along the same directions: with directions
of their own, what is left of their difference is noise over h, and the scores are those of chance times theta.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, Estimator, Key, Params, PyTree
from jaxrobust.zeroth_order.coordinate import check_floating


def grasp(value_fn: Callable[[Params], Array], params: Params) -> PyTree:
    r"""The exact scores, by differentiation.

    .. math:: s = -\theta \odot (H g)

    Args:
      value_fn: a scalar or `[batch]`, whose mean is meant.
      params: pytree of floats.

    Returns:
      Scores like params. Of GraSP's own networks those with the largest scores are removed; DeepZero keeps the largest
      in size, and of these only their share in each layer.

    Example:
      >>> import jax.numpy as jnp
      >>> grasp(lambda x: x[0] ** 2 + 3 * x[1], jnp.array([2.0, 5.0])).tolist()
      [-16.0, -0.0]

    Reference: Wang, Zhang and Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow",
    https://arxiv.org/abs/2002.07376, 2020.
    """
    gradient = jax.grad(lambda point: jnp.mean(value_fn(point)))
    found, product = jax.jvp(gradient, (params,), (gradient(params),))
    del found
    return jax.tree.map(lambda leaf, part: -leaf * part, params, product)


def zero_order_grasp(
    key: Key,
    value_fn: Callable[[Params], Any],
    params: Params,
    estimator: Estimator,
    *,
    step: float = 0.1,
) -> tuple[PyTree, Array]:
    r"""The scores from function values, with common random numbers.

    .. math:: s = -\theta \odot \frac{\hat g(\theta + h \, \hat g(\theta)) - \hat g(\theta)}{h}

    Args:
      key: of both estimates.
      value_fn: a scalar or `[batch]`.
      params: pytree of floats.
      estimator: of the gradient: `coordinate` where it can be had, or as many random directions as there are
        parameters; 192 directions, as published, leave little but noise.
      step: h > 0 over the length of the first estimate. The published 5e-3 without that length is in the rounding.

    Returns:
      Scores like params, 0 where a query gave no answer (NaN everywhere if none did), and int32, the queries made.

    Raises:
      ValueError: for a step that is not positive, or leaves that are not floats.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.zeroth_order import coordinate
      >>> value, point = lambda x: x[0] ** 2 + 3 * x[1], jnp.array([2.0, 5.0])
      >>> scores, queries = zero_order_grasp(jax.random.key(0), value, point, coordinate(central=True))
      >>> [round(s) for s in scores.tolist()], int(queries)
      ([-16, 0], 10)

    Reference: Chen et al., "DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training",
    https://arxiv.org/abs/2310.02025, 2024.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")
    check_floating(params)
    first = estimator(key, value_fn, params)
    # What is not known is not moved, so that a lost query costs its own coordinates alone.
    known = jax.tree.map(lambda part: jnp.where(jnp.isfinite(part), part, 0), first.gradient)
    leaves = jax.tree.leaves(known)
    length = jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves))
    reach = step / jnp.where(length > 0, length, jnp.float32(1))
    moved = jax.tree.map(lambda leaf, part: leaf + reach.astype(leaf.dtype) * part, params, known)
    second = estimator(key, value_fn, moved)
    scores = jax.tree.map(
        lambda leaf, one, two: -leaf * ((two - one) / reach.astype(leaf.dtype)), params, first.gradient, second.gradient
    )
    answered = [jnp.any(jnp.isfinite(part)) for part in jax.tree.leaves(scores)]
    otherwise = jnp.where(jnp.any(jnp.array(answered)), 0, jnp.nan)
    scores = jax.tree.map(lambda part: jnp.where(jnp.isfinite(part), part, otherwise.astype(part.dtype)), scores)
    return scores, first.queries + second.queries
