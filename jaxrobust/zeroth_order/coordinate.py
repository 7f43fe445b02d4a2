r"""Coordinate-wise gradient estimation (CGE): one difference quotient for every parameter.

.. math:: g_i = \frac{f(\theta + \mu e_i) - f(\theta)}{\mu}, \quad
          g_i = \frac{f(\theta + \mu e_i) - f(\theta - \mu e_i)}{2 \mu} \text{ (central)}

with mu the smoothing and e_i the i-th unit vector. The error of g_i is mu f_ii / 2 + O(mu^2), of the central quotient
mu^2 f_iii / 6 + O(mu^4); rounding adds about 2 eps |f| / mu.

One leaf is perturbed at a time, and what does not depend on it is known: the function is traced once, all of its values
are found once, and a query evaluates what follows the parameter alone (DeepZero's feature reuse, for each parameter and
without a list of layers). Where one weight moves one unit or one channel, that column alone is followed as far as it
goes (`jaxrobust.zeroth_order.structured`). No convolution ever sees weights and inputs mapped at once, which would make
it a grouped one and slow. A `scan` over layers is one step: it is evaluated as a whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust.sites import trace
from jaxrobust.typing import Array, AxisName, Estimate, Estimator, Key, Params, State
from jaxrobust.zeroth_order.queries import answers, within
from jaxrobust.zeroth_order.selection import Selection
from jaxrobust.zeroth_order.structured import after_step


def coordinate(
    smoothing: float = 5e-3,
    central: bool = False,
    chunk_size: int = 64,
    selection: Selection | None = None,
    axis_name: AxisName | None = None,
    chunk_bytes: int | None = None,
) -> Estimator:
    r"""Estimate the gradient coordinate by coordinate.

    .. math:: g_i = (f(\theta + \mu e_i) - f(\theta)) / \mu

    Args:
      smoothing: mu > 0. 5e-3, the default of DeepZero, suits float32 and losses of order 1. A network that
        computes in 16 bits rounds such a step away: take 0.25 for bfloat16, or evaluate it in float32. Near a minimum,
        where gradients are small beside the curvature and beside the rounding of losses, take both sides, a tenth of it
        and 64 bits.
      central: take both sides, for smooth functions.
      chunk_size: coordinates evaluated at once; memory grows with it, the result does not depend on it. Besides, the
        function's intermediate values at params are kept, as backprop keeps them.
      selection: which coordinates are looked at, with zeros elsewhere, as `uniform_selection` makes it; None for all.
      axis_name: a mapped axis, `"query"` say, whose devices share the queries; all must see the same data. None for one
        device, or where each device estimates for itself. Each also asks for the value at params, and the last round is
        filled up: queries count none of these twice.
      chunk_bytes: bytes that the values of the queries of a chunk may take: fewer go side by side where a layer's are
        large. What a loop holds inside, and a second side, are not counted. None to go by `chunk_size` alone.

    Returns:
      An `Estimator` that makes d + 1 queries for d parameters (or d selected ones), 2 d + 1 with `central`, and ignores
      its key. With a selection its state is the number of estimates done.

    Raises:
      ValueError: for smoothing, chunk_size or chunk_bytes that is not positive; when called, for leaves that are not
        floats.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> found = coordinate(central=True)(jax.random.key(0), lambda x: jnp.sum(x**2), jnp.array([1.0, -3.0]))
      >>> [round(g, 3) for g in found.gradient.tolist()], int(found.queries)
      ([2.0, -6.0], 5)

    Reference: Chen, Zhang, Jia, Diffenderfer, Liu, Parasyris, Zhang, Zhang, Kailkhura and Liu, "DeepZero: Scaling up
    Zeroth-Order Optimization for Deep Model Training", https://arxiv.org/abs/2310.02025, 2024.
    """
    check_steps(smoothing, chunk_size, chunk_bytes)

    def estimate(key: Key, value_fn: Callable[[Params], tuple[Array, Any]], params: Params, state: State) -> Estimate:
        del key
        check_floating(params)
        leaves, structure = jax.tree.flatten(params)
        program = trace(value_fn, params)
        known = program.evaluate(leaves)
        values, aux = program.result(known)
        base = jnp.mean(values)

        def leaf_gradient(number: int) -> Array:
            leaf = leaves[number]

            def value(index: Array, step: float) -> Array:
                return jnp.mean(after_step(program, known, number, index, step))

            def slope(index: Array) -> Array:
                if central:
                    return (value(index, smoothing) - value(index, -smoothing)) / (2 * smoothing)
                return (value(index, smoothing) - base) / smoothing

            if not leaf.size:
                return leaf
            indices = jnp.arange(leaf.size) if chosen is None else chosen[number].indices
            together = within(chunk_size, chunk_bytes, program, known, program.leaves[number])
            slopes = answers(slope, indices, together, axis_name)
            if chosen is None:
                return slopes.reshape(leaf.shape).astype(leaf.dtype)
            slopes *= chosen[number].factors.astype(slopes.dtype)
            spread = jnp.zeros(leaf.size, slopes.dtype).at[indices].add(slopes)
            return spread.reshape(leaf.shape).astype(leaf.dtype)

        chosen = None if selection is None else selection.choose(state, params)
        gradient = structure.unflatten([leaf_gradient(number) for number in range(len(leaves))])
        count = sum(leaf.size for leaf in leaves) if chosen is None else sum(each.indices.size for each in chosen)
        after = state if selection is None else state + 1
        return Estimate(base, gradient, jnp.int32(1 + (2 if central else 1) * count), aux, after)

    return Estimator(init=lambda params: () if selection is None else jnp.int32(0), estimate=estimate)


def check_steps(smoothing: float, chunk_size: int, chunk_bytes: int | None) -> None:
    """Refuse a step or a chunk of nothing."""
    if not smoothing > 0:
        raise ValueError(f"smoothing must be positive, got {smoothing}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}")


def check_floating(params: Params) -> None:
    """Refuse leaves that a small step cannot move, by name."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path) or "the only leaf"
            raise ValueError(
                f"params must have floating-point leaves, got {jnp.result_type(leaf)} at {name}: "
                "leave it out with as_transform's where, or close over it"
            )
