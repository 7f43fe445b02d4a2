r"""Fixed attacks at their worst: the strength along a direction that leads a known rule farthest from the honest mean.

.. math:: b = \bar g + \gamma p, \qquad \gamma = \arg\max_\gamma \| F(b, \dots, b, H) - \bar g \|_2

Along `directions.opposite` it is the optimal inner-product manipulation, along `directions.spread` the optimal "a
little is enough".
"""

from jaxrobust.aggregation.attackers.attacker import Attacker
from jaxrobust.aggregation.attackers.directions import Direction, opposite
from jaxrobust.aggregation.attackers.harms import Harm, displacement
from jaxrobust.aggregation.attackers.omniscient import omniscient
from jaxrobust.typing import Rule


def optimized(rule: Rule, direction: Direction = opposite, *, harm: Harm = displacement) -> Attacker:
    r"""Send what does a known rule most harm along one direction: `omniscient` with a pool of one.

    .. math:: \gamma = \arg\max_{\gamma \ge 0} h \bigl( F(\bar g + \gamma p, \dots, H), \bar g \bigr)

    Args:
      rule: what the server applies; one that draws is given the attacker's key, not its own.
      direction: p, `(honest [n - f, d]) -> [d]`.
      harm: `(aggregate [d], honest mean [d]) -> scalar` to maximize. A rule that selects one worker lies far from the
        mean without any attack; `harms.reversal` asks what the attack adds.

    Returns:
      An `Attacker`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation import aggregate, rules
      >>> honest = jnp.array([[1.0], [2.0], [3.0], [6.0]])
      >>> sent = optimized(rules.median())(None, honest, jnp.zeros((1, 1)))
      >>> aggregate(rules.median(), jnp.concatenate([sent, honest])).tolist()
      [2.0]

    Reference: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan, "Fixing by Mixing: A Recipe for Optimal
    Byzantine ML under Heterogeneity", https://arxiv.org/abs/2302.01772, 2023 (section 6).
    """
    return omniscient((rule,), directions=(direction,), harm=harm)
