r"""SMEA: the mean of the n - f vectors that vary least in any one direction.

The largest eigenvalue of a covariance of d dimensions is that of an n x n matrix,

.. math:: \lambda_{\max} \Bigl( \tfrac{1}{s} \sum_i c_i (x_i - \bar x)(x_i - \bar x)^\top \Bigr)
    = \lambda_{\max} \Bigl( \tfrac{1}{s} \sqrt{C} H G H^\top \sqrt{C} \Bigr), \qquad s = \sum_i c_i,

with H taking off the weighted mean; so it is found exactly, where others take a random power step.
"""

import jax.numpy as jnp

from jaxrobust.aggregation.rules.subsets import best_subset
from jaxrobust.typing import Array, Rule


def smea(faulty: int) -> Rule:
    r"""Average the set of n - f vectors whose covariance has the least largest eigenvalue.

    .. math:: F(x_1, \dots, x_n) = \frac{1}{n - f} \sum_{i \in S^*} x_i, \qquad
        S^* = \arg\min_{|S| = n - f} \lambda_{\max} \Bigl( \sum_{i \in S} (x_i - \bar x_S)(x_i - \bar x_S)^\top \Bigr)

    All sets are looked at: C(n, f) of them. The first in lexicographic order wins a tie. A dead worker counts as one of
    the faulty.

    Args:
      faulty: f, how many workers may lie; n > 2f, and at most a hundred thousand sets.

    Returns:
      A `Rule` without state; a chosen worker's weight is 1 / (n - f).

    Raises:
      ValueError: for negative faulty, and, when applied, for too few workers or too many sets.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [-90.0], [6.0]])
      >>> smea(faulty=1).apply(None, rows, jnp.ones(4, bool), (), None)[0].tolist()
      [3.0]

    Reference: Allouah, Guerraoui, Gupta, Pinot and Stephan, "On the Privacy-Robustness-Utility Trilemma in Distributed
    Learning", https://arxiv.org/abs/2302.04787, 2023 (section 4).
    """

    def spread(products: Array, members: Array) -> Array:
        matrix = covariance(products, members)
        scale = jnp.maximum(jnp.max(jnp.abs(matrix)), jnp.finfo(matrix.dtype).tiny)
        return jnp.linalg.eigvalsh(matrix / scale)[-1] * scale

    return best_subset("smea", faulty, spread, most=100_000, batch_size=64)


def covariance(products: Array, weights: Array) -> Array:
    """The `[n, n]` matrix with the non-zero eigenvalues of the vectors' weighted covariance.

    Args:
      products: `[n, n]`, the vectors' Gram matrix.
      weights: `[n]`, not negative.

    Returns:
      `[n, n]`, symmetric; row i is about vector i times the square root of its weight.
    """
    roots = jnp.sqrt(weights / jnp.sum(weights))
    return about_mean(products, weights) * roots[:, None] * roots[None, :]


def about_mean(products: Array, weights: Array) -> Array:
    """The Gram matrix of the vectors less their weighted mean."""
    share = weights / jnp.sum(weights)
    along = jnp.sum(products * share, axis=1)
    return products - along[:, None] - along[None, :] + jnp.sum(along * share)
