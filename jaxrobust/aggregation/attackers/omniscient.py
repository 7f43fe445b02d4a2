r"""An omniscient attacker against a pool: it knows all gradients and rules, and not which rule will be drawn.

.. math:: b = \bar g + \gamma p, \qquad (\gamma, p) = \arg\max \frac{1}{M} \sum_{m=1}^{M}
          h \bigl( F_m(b, \dots, b, H), \bar g \bigr)

The attack comes before the draw, so that all it can raise is the expected harm h. With h = -<F, mean> that is minus the
alignment <E[F], mean> whose sign decides whether training goes on.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.aggregation.all_reduce import aggregate
from jaxrobust.aggregation.attackers.attacker import Attacker, colluding
from jaxrobust.aggregation.attackers.directions import Direction, opposite, opposite_sign, spread
from jaxrobust.aggregation.attackers.harms import Harm, reversal
from jaxrobust.typing import Array, Key, Rule

_STRENGTHS = np.concatenate([[0.0], np.geomspace(1e-3, 1e5, 65)])
_ROUNDS, _POINTS = 2, 17


def omniscient(
    pool: Sequence[Rule],
    *,
    directions: Sequence[Direction] = (opposite, spread, opposite_sign),
    harm: Harm = reversal,
) -> Attacker:
    r"""Send what does most harm in expectation over a uniform draw from a pool of rules.

    .. math:: \max_{p, \gamma \ge 0} \frac{1}{M} \sum_m h \bigl( F_m(b, \dots, b, H), \bar g \bigr)

    Harm is not concave in the strength (a rule that selects drops a hostile vector at once), so it is measured at 0 and
    at 65 strengths from 1e-3 to 1e5, eight a decade, and twice at 17 more between the neighbors of the best: 100
    applications of each rule a direction.

    Args:
      pool: the rules, each as likely; repeat one to make it likelier.
      directions: from the honest mean; all are tried.
      harm: `(aggregate [d], honest mean [d]) -> scalar` to maximize.

    Returns:
      An `Attacker`. A rule that draws is given the attacker's key, so that it must not be the reduction's: what the
      attacker does not know is the draw.

    Raises:
      ValueError: for an empty pool, or no direction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation import rules
      >>> honest = jnp.array([[1.0], [2.0], [3.0], [6.0]])
      >>> sent = omniscient([rules.median()])(None, honest, jnp.zeros((1, 1)))
      >>> bool(sent[0, 0] <= 2)
      True

    Reference: Ramezani-Kebrya, Tabrizian, Faghri and Popovski, "MixTailor: Mixed Gradient Aggregation for Robust
    Learning Against Tailored Attacks", https://arxiv.org/abs/2207.07941, 2022.
    """
    if not pool:
        raise ValueError("pool must hold a rule or more, got none")
    if not directions:
        raise ValueError("directions must hold one or more, got none")

    def forge(key: Key | None, honest: Array, faulty: int) -> Array:
        mean = jnp.mean(honest, axis=0)

        def hostile(push: Array, strength: Array) -> Array:
            return mean + strength * push

        def expected(push: Array, strength: Array) -> Array:
            sent = jnp.broadcast_to(hostile(push, strength), (faulty, *mean.shape))
            stacked = jnp.concatenate([sent, honest])
            return jnp.mean(jnp.stack([harm(aggregate(rule, stacked, key=key), mean) for rule in pool]))

        pushes = jnp.stack([direction(honest) for direction in directions])
        strengths, harms = jax.lax.map(lambda push: _strongest(partial(expected, push), honest.dtype), pushes)
        best = jnp.argmax(harms)
        return hostile(pushes[best], strengths[best])

    return colluding(forge)


def _strongest(harm: Callable[[Array], Array], dtype: np.dtype) -> tuple[Array, Array]:
    """The strength of most harm, and that harm; one that is not a number counts as none."""

    def look(strengths: Array, found: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        harms = jax.lax.map(harm, strengths).astype(dtype)
        harms = jnp.where(jnp.isnan(harms), -jnp.inf, harms)
        best = jnp.argmax(harms)
        strength = jnp.where(harms[best] > found[1], strengths[best], found[0])
        neighbors = strengths[jnp.maximum(best - 1, 0)], strengths[jnp.minimum(best + 1, len(strengths) - 1)]
        return (strength, jnp.maximum(harms[best], found[1])), neighbors

    def closer(_: Array, state: tuple) -> tuple:
        found, (low, high) = state
        return look(jnp.linspace(low, high, _POINTS, dtype=dtype), found)

    nothing = jnp.zeros((), dtype), jnp.full((), -jnp.inf, dtype)
    return jax.lax.fori_loop(0, _ROUNDS, closer, look(jnp.asarray(_STRENGTHS, dtype), nothing))[0]
