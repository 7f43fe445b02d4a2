r"""Against rules that select: as far against the honest sign as the rule still lets in.

.. math:: b = -\lambda \operatorname{sign}(\bar g), \qquad \lambda = \max \{ \lambda : w_{\text{faulty}}(\lambda) > 0 \}

with w the weights that the rule gives to the workers.
"""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.attackers.attacker import Attacker, colluding
from jaxrobust.aggregation.attackers.min_max import squared_distances
from jaxrobust.typing import Array, Key, Rule

_HALVINGS, _BISECTIONS = 40, 24


def fang_krum(rule: Rule) -> Attacker:
    r"""Send the farthest multiple of the honest sign's opposite that a known rule selects.

    .. math:: b = -\lambda \operatorname{sign}(\bar g), \qquad
              \lambda_0 = \frac{\max_i \|g_i\| + \sqrt n \max_{ij} \|g_i - g_j\|}{\sqrt d}

    Lambda is halved from lambda_0, beyond which Krum selects no hostile vector (for n > 2 f + 1), until the rule gives
    the faulty workers weight; the paper stops there, and here bisection goes on between that lambda and its double.
    If 40 halvings are not enough, the smallest is sent. The paper adds jitter between colluders; here they are equal.

    Args:
      rule: what the server applies, one whose weights say whom it selected: Krum, multi-Krum, minimum diameter.

    Returns:
      An `Attacker`; a rule that draws is given its key.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation import rules
      >>> def nearest_to_zero(key, columns, alive, axis):
      ...     chosen = jnp.argmin(jnp.sum(columns**2, axis=1))
      ...     return columns[chosen], jnp.arange(len(columns)) == chosen
      >>> attacker = fang_krum(rules.stateless(nearest_to_zero))
      >>> attacker(None, jnp.array([[1.0], [3.0]]), jnp.zeros((1, 1))).round(4).tolist()
      [[-1.0]]

    Reference: Fang, Cao, Jia and Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
    https://arxiv.org/abs/1911.11815, 2020 (section 4.2, full knowledge).
    """

    def forge(key: Key | None, honest: Array, faulty: int) -> Array:
        workers, dimension = len(honest) + faulty, honest.shape[1]
        against = -jnp.sign(jnp.mean(honest, axis=0))

        def selected(strength: Array) -> Array:
            hostile = jnp.broadcast_to(strength * against, (faulty, dimension))
            stacked = jnp.concatenate([hostile, honest])
            state = rule.init(workers, dimension)
            _, _, weights = rule.apply(key, stacked, jnp.ones(workers, bool), state, None)
            return jnp.any(weights[:faulty] > 0)

        longest = jnp.sqrt(jnp.max(jnp.sum(jnp.square(honest), axis=1)))
        apart = jnp.sqrt(workers * jnp.max(squared_distances(honest)))
        halves = jnp.exp2(-jnp.arange(_HALVINGS, dtype=honest.dtype))
        strengths = (longest + apart) / jnp.sqrt(jnp.full((), dimension, honest.dtype)) * halves
        taken = jax.lax.map(selected, strengths)
        start = strengths[jnp.where(jnp.any(taken), jnp.argmax(taken), _HALVINGS - 1)]

        def bisect(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = (low + high) / 2
            inside = selected(middle)
            return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

        return jax.lax.fori_loop(0, _BISECTIONS, bisect, (start, 2 * start))[0] * against

    return colluding(forge)
