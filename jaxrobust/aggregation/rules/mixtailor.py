"""MixTailor: a rule drawn anew in every step, so that no attack can be tailored to it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.rules.bulyan import bulyan
from jaxrobust.aggregation.rules.geometric_median import geometric_median
from jaxrobust.aggregation.rules.krum import krum_mixtailor
from jaxrobust.aggregation.rules.mean import mean
from jaxrobust.aggregation.rules.median import median
from jaxrobust.typing import Array, AxisName, Key, Rule, State


def mixtailor(pool: Sequence[Rule]) -> Rule:
    r"""Apply one rule of a pool, drawn uniformly.

    .. math:: F = F_k, \qquad k \sim \mathrm{Uniform}\{1, \dots, M\}

    All devices draw alike, from the shared key, which attackers must not know. Rules that are equal are compiled once
    and drawn as often as they occur. Only the rule that was drawn runs, and asks the axis for what it needs; under a
    `vmap` that maps the key all of them run, and one result is taken.

    Args:
      pool: the M rules.

    Returns:
      A `Rule` that needs a key; its state holds that of each different rule, of which a step changes the drawn one's.
      The weights are the drawn rule's.

    Raises:
      ValueError: for an empty pool, and, when applied, without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.aggregation import rules
      >>> rule, rows = mixtailor([rules.median(), rules.mean()]), jnp.array([[0.0], [0.0], [3.0]])
      >>> state, alive = rule.init(3, 1), jnp.ones(3, bool)
      >>> sorted({rule.apply(jax.random.key(i), rows, alive, state, None)[0].item() for i in range(6)})
      [0.0, 1.0]

    Reference: Ramezani-Kebrya, Tabrizian, Faghri and Popovski, "MixTailor: Mixed Gradient Aggregation for Robust
    Learning Against Tailored Attacks", https://arxiv.org/abs/2207.07941, 2022 (algorithm 1).
    """
    if not pool:
        raise ValueError("pool must hold a rule, got an empty one: see mixtailor_pool")
    different = list(dict.fromkeys(pool))
    table = [different.index(rule) for rule in pool]

    def init(workers: int, columns: int) -> State:
        return tuple(rule.init(workers, columns) for rule in different)

    def apply(
        key: Key | None, columns: Array, alive: Array, state: State, axis: AxisName | None
    ) -> tuple[Array, State, Array]:
        if key is None:
            raise ValueError("mixtailor draws a rule in every step: key must be given, got None")
        own, inner = jax.random.split(key)
        drawn = jnp.array(table, jnp.int32)[jax.random.randint(own, (), 0, len(table))]

        def branch(number: int) -> tuple[Array, State, Array]:
            column, after, weights = different[number].apply(inner, columns, alive, state[number], axis)
            return column, (*state[:number], after, *state[number + 1 :]), weights

        return jax.lax.switch(drawn, [lambda number=number: branch(number) for number in range(len(different))])

    return Rule(init, apply)


def mixtailor_pool(faulty: int) -> tuple[Rule, ...]:
    """The 64 rules of the paper's experiments: 16 each of Krum, median, geometric median and Bulyan.

    Krum is in L_p for p from 1 to 16, Bulyan selects and joins by each of Krum, geometric median, median and mean; the
    others are 16 copies of one rule, as published. The median is the lower one, and the geometric median takes 20 steps
    (without the published random start).

    Four members end in a plain mean of what Bulyan selected. Those that select by Krum or by the mean can let a vector
    of any length in, once in 32 steps: the pool withstands vectors as long as gradients are, not a flipped exponent.
    Against faults without bound take a pool of `krum_mixtailor`, `median`, `geometric_median` and `bulyan`.

    Args:
      faulty: f, how many workers may lie; n >= 4f + 3.

    Returns:
      64 rules, 34 of them different.

    Example:
      >>> pool = mixtailor_pool(faulty=2)
      >>> len(pool), len(set(pool))
      (64, 34)
    """
    krums = tuple(krum_mixtailor(faulty, p) for p in range(1, 17))
    middle, center, average = median(lower=True), geometric_median(steps=20), mean()
    bulyans = tuple(
        bulyan(faulty, power=1.0, selector=selector, aggregator=aggregator)
        for selector in (None, center, middle, average)
        for aggregator in (krums[1], center, middle, average)
    )
    return krums + (middle,) * 16 + (center,) * 16 + bulyans
