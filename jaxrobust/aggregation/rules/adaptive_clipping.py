"""Adaptive robust clipping: the longest vectors become as long as the next one."""

import jax.numpy as jnp

from jaxrobust.aggregation.rules.clipping import joined_shortened
from jaxrobust.aggregation.rules.distances import norms
from jaxrobust.aggregation.rules.weighted import require, require_faulty
from jaxrobust.typing import Array, AxisName, Key, Rule, State


def adaptive_clipping(rule: Rule, *, faulty: int) -> Rule:
    r"""Give a rule the vectors, the k longest of them shortened to the length of the next.

    .. math:: y_i = \min \Bigl( 1, \frac{c}{\|x_i\|} \Bigr) x_i, \qquad k = \lfloor 2 (f / n) (n - f) \rfloor

    with c the (k + 1)-th largest norm. A dead worker counts as one of the faulty, and not as one of the n.

    Args:
      rule: F.
      faulty: f, how many workers may lie; n > 2f.

    Returns:
      A `Rule` with F's state; the weights are F's times how much was left of each vector.

    Raises:
      ValueError: for negative faulty, and, when applied, for too few workers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation import rules
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [1e30]])
      >>> adaptive_clipping(rules.mean(), faulty=1).apply(None, rows, jnp.ones(4, bool), (), None)[0].tolist()
      [2.25]

    Reference: Allouah, Guerraoui, Gupta, Jellouli, Rizk and Stephan, "Adaptive Gradient Clipping for Robust Federated
    Learning", https://arxiv.org/abs/2405.14432, 2024 (algorithm 2).
    """
    require_faulty(faulty)

    def apply(
        key: Key | None, columns: Array, alive: Array, state: State, axis: AxisName | None
    ) -> tuple[Array, State, Array]:
        workers = alive.shape[0]
        require(workers, 2 * faulty + 1, "adaptive_clipping", "n > 2f", faulty)
        lengths = norms(columns, axis, alive)
        living = jnp.sum(alive, dtype=jnp.int32)
        unknown = jnp.maximum(faulty - (workers - living), 0)
        shortened = 2 * unknown * (living - unknown) // jnp.maximum(living, 1)
        ascending = jnp.sort(jnp.where(alive, lengths, jnp.inf))
        longest = ascending[jnp.maximum(living - shortened - 1, 0)]
        factors = jnp.where(lengths > longest, longest / lengths, 1.0)
        return joined_shortened(rule, factors, key, columns, alive, state, axis)

    return Rule(rule.init, apply)
