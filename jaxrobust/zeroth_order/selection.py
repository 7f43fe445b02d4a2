r"""Which coordinates a sparse estimate looks at: sparse gradients of dense weights.

With k_l of the d_l coordinates of leaf l drawn uniformly, without replacement and anew in each step, and slopes scaled
by d_l / k_l, the expectation is the dense estimate; as published they are not scaled. With coordinates drawn by
importance, k times with replacement and slopes scaled by 1 / (k p_i), it is as well, whatever p.

A selection is a pure function of its key and of the step, with counts that are static: a run that is resumed goes on
with the same coordinates, and nothing compiles anew.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.typing import Array, Key, Params, PyTree


class Selected(NamedTuple):
    """Coordinates of one leaf.

    Attributes:
      indices: `[k]` int32, in the ravelled leaf.
      factors: `[k]`, what their slopes are multiplied with.
    """

    indices: Array
    factors: Array


class Selection(NamedTuple):
    """A way to choose.

    Attributes:
      choose: `(count, params) -> [Selected, ...]`, one for each leaf; count is int32, the estimates done before.
    """

    choose: Callable[[Array, Params], list[Selected]]


def uniform_selection(
    densities: PyTree | float, key: Key, *, interval: int | None = 1, rescale: bool = False
) -> Selection:
    r"""Coordinates drawn uniformly in each leaf.

    .. math:: g_i = \frac{f(\theta + \mu e_i) - f(\theta)}{\mu} \; [i \in S_t], \quad |S_t \cap l| = k_l

    Args:
      densities: share of each leaf's coordinates in (0, 1], a tree like params or one number for all; at least one
        coordinate of a leaf is taken. 1 takes all, always.
      key: of the draws.
      interval: estimates after which the coordinates are drawn anew; None keeps the first ones.
      rescale: whether slopes are divided by the density, so that the estimate is unbiased for the dense one. Published
        runs do not: their steps are as much smaller.

    Returns:
      A `Selection`.

    Raises:
      ValueError: for an interval that is not positive; when called, for a density outside (0, 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.zeroth_order import coordinate
      >>> estimator = coordinate(selection=uniform_selection(0.25, jax.random.key(0)))
      >>> found = estimator(jax.random.key(0), lambda x: jnp.sum(x), jnp.zeros(8))
      >>> int(found.queries), int(jnp.sum(jnp.abs(found.gradient - 1) < 1e-3))
      (3, 2)

    Reference: Chen et al., "DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training",
    https://arxiv.org/abs/2310.02025, 2024.
    """
    if interval is not None and interval < 1:
        raise ValueError(f"interval must be positive, got {interval}: None keeps the first coordinates")

    def choose(count: Array, params: Params) -> list[Selected]:
        leaves = jax.tree.leaves(params)
        shares = [densities] * len(leaves) if isinstance(densities, float | int) else jax.tree.leaves(densities)
        if len(shares) != len(leaves):
            raise ValueError(f"densities must have the {len(leaves)} leaves of params, got {len(shares)}")
        drawn = jax.random.fold_in(key, jnp.int32(0) if interval is None else count // interval)
        found = []
        for number, (leaf, share) in enumerate(zip(leaves, shares, strict=True)):
            if not 0 < float(share) <= 1:
                raise ValueError(f"densities must lie in (0, 1], got {float(share)}")
            taken = min(leaf.size, max(1, round(float(share) * leaf.size)))
            factor = leaf.size / taken if rescale and taken else 1.0
            order = jnp.arange(leaf.size)
            if taken < leaf.size:
                order = jax.random.permutation(jax.random.fold_in(drawn, number), leaf.size)[:taken]
            found.append(Selected(order.astype(jnp.int32), jnp.full(taken, factor, jnp.float32)))
        return found

    return Selection(choose)


def importance_selection(weights: Callable[[Params], PyTree], draws: int, key: Key) -> Selection:
    r"""Coordinates drawn by importance, over all leaves, with replacement.

    .. math:: g = \frac{1}{k} \sum_{j=1}^{k} \frac{1}{p_{i_j}} \frac{f(\theta + \mu e_{i_j}) - f(\theta)}{\mu} e_{i_j},
              \quad i_j \sim p

    Args:
      weights: of params, a tree like them of numbers that are not negative, as `lambda p: jax.tree.map(jnp.abs, p)`; p
        is their share. A coordinate of weight 0 is never drawn, and its part of the gradient is lost, but where a
        leaf has no other: all of it is then alike.
      draws: k for each leaf of its share of all coordinates; static. A leaf has at least one.
      key: of the draws; they are anew in each estimate.

    Returns:
      A `Selection` whose estimate is unbiased for the dense one where no weight is 0.

    Raises:
      ValueError: for draws that are not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.zeroth_order import coordinate
      >>> selection = importance_selection(lambda x: jnp.array([1.0, 0.0, 0.0]), 4, jax.random.key(0))
      >>> found = coordinate(selection=selection)(jax.random.key(0), lambda x: jnp.sum(x), jnp.zeros(3))
      >>> int(found.queries), [round(float(g), 2) for g in found.gradient]
      (5, [1.0, 0.0, 0.0])

    Reference: Nesterov, "Efficiency of Coordinate Descent Methods on Huge-Scale Optimization Problems",
    https://doi.org/10.1137/100802001, 2012.
    """
    if draws < 1:
        raise ValueError(f"draws must be positive, got {draws}")

    def choose(count: Array, params: Params) -> list[Selected]:
        leaves, given = jax.tree.leaves(params), jax.tree.leaves(weights(params))
        total = sum(leaf.size for leaf in leaves)
        drawn = jax.random.fold_in(key, count)
        found = []
        for number, (leaf, weight) in enumerate(zip(leaves, given, strict=True)):
            taken = max(1, round(draws * leaf.size / total)) if leaf.size else 0
            # A leaf without any weight, as biases that begin at 0, has all of its coordinates alike.
            flat = weight.reshape(-1).astype(jnp.float32)
            shares = jnp.where(jnp.all(flat == 0), 1.0, flat)
            shares /= jnp.sum(shares)
            indices = jax.random.choice(jax.random.fold_in(drawn, number), leaf.size, (taken,), p=shares)
            found.append(Selected(indices.astype(jnp.int32), 1 / (taken * shares[indices])))
        return found

    return Selection(choose)


def layerwise_densities(scores: PyTree, sparsity: float, always: Callable[[Array], bool] | None = None) -> PyTree:
    r"""The share of each leaf's coordinates that one threshold over all leaves keeps.

    Of coordinates at the threshold itself, each leaf keeps the same share, so that the sparsity is met by equal scores.

    .. math:: \rho_l = \frac{|\{i \in l : |s_i| \geq t\}|}{d_l}, \quad
              t \text{ the sparsity-quantile of } |s| \text{ over the leaves}

    Args:
      scores: tree like params, as `grasp` and `zero_order_grasp` give them.
      sparsity: share of coordinates left out, in [0, 1).
      always: of a leaf, whether it is taken whole and left out of the threshold; vectors and scalars (biases, the
        parameters of norms) by default.

    Returns:
      A tree of Python floats in (0, 1]: a leaf below the threshold keeps one coordinate.

    Raises:
      ValueError: for a sparsity outside [0, 1), or scores that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> layerwise_densities({"a": jnp.array([[3.0, 4.0]]), "b": jnp.array([[1.0, 2.0]]), "c": jnp.zeros(2)}, 0.5)
      {'a': 1.0, 'b': 0.5, 'c': 1.0}
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    whole = always or (lambda leaf: leaf.ndim < 2)
    leaves, structure = jax.tree.flatten(scores)
    sizes = [np.abs(np.asarray(leaf, np.float64)).reshape(-1) for leaf in leaves]
    ranked = [values for leaf, values in zip(leaves, sizes, strict=True) if not whole(leaf) and leaf.size]
    if not ranked:
        return structure.unflatten([1.0] * len(leaves))
    every = np.concatenate(ranked)
    if lost := int(np.sum(~np.isfinite(every))):
        raise ValueError(f"scores must be finite, got {lost} of {every.size} that are not: the function gave no answer")
    left_out = min(round(sparsity * every.size), every.size - 1)
    threshold = np.sort(every)[left_out]
    above, level = np.sum(every > threshold), np.sum(every == threshold)
    share = (every.size - left_out - above) / level

    def density(leaf: Array, values: np.ndarray) -> float:
        if whole(leaf) or not leaf.size:
            return 1.0
        return float(max(1, np.sum(values > threshold) + share * np.sum(values == threshold)) / leaf.size)

    return structure.unflatten([density(leaf, values) for leaf, values in zip(leaves, sizes, strict=True)])
