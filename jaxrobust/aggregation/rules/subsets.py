"""Rules that look at every set of n - f workers and take the mean of the best one."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.aggregation.rules.weighted import require, require_faulty, weighted
from jaxrobust.typing import Array, Rule


def best_subset(name: str, faulty: int, score: Callable[[Array, Array], Array], most: int, batch_size: int) -> Rule:
    """Make a `Rule` that averages the set of n - f workers with the least score.

    Args:
      name: what an error calls it.
      faulty: f; n > 2f.
      score: `(Gram matrix [n, n], members [n] of 0 and 1) -> score`.
      most: how many sets are too many.
      batch_size: how many sets are looked at together.

    Returns:
      A `Rule` without state; the first set in lexicographic order wins a tie. A dead worker counts as one of the
      faulty; with more than f of them it is the mean of the living.
    """
    require_faulty(faulty)

    def weigh(products: Array, alive: Array) -> Array:
        workers = alive.shape[0]
        require(workers, 2 * faulty + 1, name, "n > 2f", faulty)
        sets = math.comb(workers, faulty)
        if sets > most:
            raise ValueError(
                f"{name} looks at every set of n - f workers: {sets} are more than {most}; take fewer faulty"
            )
        chosen = itertools.combinations(range(workers), workers - faulty)
        rows = np.fromiter(itertools.chain.from_iterable(chosen), np.int32).reshape(sets, workers - faulty)

        def scored(row: Array) -> Array:
            members = jnp.zeros(workers, products.dtype).at[row].set(1.0)
            return jnp.where(jnp.all(alive[row]), score(products, members), jnp.inf)

        scores = jax.lax.map(scored, jnp.asarray(rows), batch_size=min(batch_size, sets))
        best = jnp.zeros(workers, bool).at[jnp.asarray(rows)[jnp.argmin(scores)]].set(True)
        members = jnp.where(jnp.sum(~alive) > faulty, alive, best).astype(products.dtype)
        return members / jnp.maximum(jnp.sum(members), 1.0)

    return weighted(weigh)
