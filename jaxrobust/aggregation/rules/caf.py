"""CAF: weights fall along the direction of largest variance, until enough of them is gone."""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.rules.smea import about_mean, covariance
from jaxrobust.aggregation.rules.weighted import require, require_faulty, weighted
from jaxrobust.typing import Array, Rule


def caf(faulty: int) -> Rule:
    r"""Filter by the covariance: take weight from who lies far out along its largest eigenvector.

    .. math:: c_i \leftarrow c_i \Bigl( 1 - \frac{\tau_i}{\max_{c_j > 0} \tau_j} \Bigr), \qquad
        \tau_i = \langle v, x_i - \mu \rangle^2

    with mu the mean and v the first eigenvector of the covariance under weights c, all 1 at first, while their sum
    exceeds n - 2f. The result is the mean with the least largest eigenvalue among those met. A step takes all weight
    from one worker at least, so there are at most 2f of them; eigenvectors are exact, from the n x n matrix. A dead
    worker counts as one of the faulty.

    Args:
      faulty: f, how many workers may lie; n > 2f. With 0 it is the mean.

    Returns:
      A `Rule` without state; the weights are those of the mean that was taken.

    Raises:
      ValueError: for negative faulty, and, when applied, for too few workers.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [-1e9], [1.5]])
      >>> round(caf(faulty=1).apply(None, rows, jnp.ones(4, bool), (), None)[0].item(), 3)
      1.5

    Reference: Allouah, Guerraoui and Stephan, "Towards Trustworthy Federated Learning with Untrusted Participants",
    https://arxiv.org/abs/2505.01874, 2025 (algorithm 2).
    """
    require_faulty(faulty)

    def weigh(products: Array, alive: Array) -> Array:
        workers = alive.shape[0]
        require(workers, 2 * faulty + 1, "caf", "n > 2f", faulty)
        dtype = products.dtype
        living = jnp.sum(alive, dtype=jnp.int32)
        left = (living - 2 * jnp.maximum(faulty - (workers - living), 0)).astype(dtype)

        def unfinished(carry: tuple[Array, Array, Array]) -> Array:
            return jnp.sum(carry[0]) > left

        def filtered(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            weights, best, least = carry
            matrix = covariance(products, weights)
            scale = jnp.maximum(jnp.max(jnp.abs(matrix)), jnp.finfo(dtype).tiny)
            values, vectors = jnp.linalg.eigh(matrix / scale)
            largest, first = values[-1] * scale, vectors[:, -1]
            along = jnp.abs(jnp.sum(about_mean(products / scale, weights) * (jnp.sqrt(weights) * first), axis=1))
            farthest = jnp.max(jnp.where(weights > 0, along, 0.0))
            ratio = jnp.where(farthest > 0, along / farthest, 1.0)
            lighter = jnp.where(weights > 0, weights * jnp.maximum(1.0 - ratio**2, 0.0), 0.0)
            better = largest < least
            return lighter, jnp.where(better, weights, best), jnp.minimum(largest, least)

        start = alive.astype(dtype)
        _, best, _ = jax.lax.while_loop(unfinished, filtered, (start, start, jnp.array(jnp.inf, dtype)))
        return best / jnp.maximum(jnp.sum(best), jnp.finfo(dtype).tiny)

    return weighted(weigh)
