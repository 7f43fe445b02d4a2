"""Bucketing: before a rule joins them, vectors are averaged in groups drawn at random."""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.rules.nearest_neighbor_mixing import joined_mixtures
from jaxrobust.precision import at_least_float32
from jaxrobust.typing import Array, AxisName, Key, Rule, State


def bucketing(rule: Rule, *, size: int = 2) -> Rule:
    r"""Give a rule the means of random groups of s workers.

    .. math:: y_k = \frac{1}{s} \sum_{i = (k - 1) s + 1}^{k s} x_{\pi(i)}, \qquad F(y_1, \dots, y_{\lceil n / s \rceil})

    with pi a random permutation; the last group may be smaller. F then has ceil(n / s) rows, up to f of them faulty
    still. The dead are left out of their group's mean; a group of dead workers only is dead.

    Args:
      rule: F; state that counts workers counts groups.
      size: s; at most n / 2f keeps a majority of the groups honest.

    Returns:
      A `Rule` that needs a key; F gets a key of its own. The weights are those of the workers' own vectors.

    Raises:
      ValueError: for size below 1, and, when applied, without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.aggregation import rules
      >>> rule, rows = bucketing(rules.median(), size=2), jnp.array([[1.0], [1.0], [1.0], [5.0], [1.0], [1.0]])
      >>> rule.apply(jax.random.key(0), rows, jnp.ones(6, bool), (), None)[0].tolist()
      [1.0]

    Reference: Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
    https://arxiv.org/abs/2006.09365, 2022 (algorithm 1).
    """
    if size < 1:
        raise ValueError(f"size must be 1 or more, got {size}")

    def init(workers: int, columns: int) -> State:
        return rule.init(-(-workers // size), columns)

    def apply(
        key: Key | None, columns: Array, alive: Array, state: State, axis: AxisName | None
    ) -> tuple[Array, State, Array]:
        if key is None:
            raise ValueError("bucketing draws its groups: key must be given, got None")
        own, inner = jax.random.split(key)
        order = jax.random.permutation(own, alive.shape[0])
        mixing = groups(order, alive, size, at_least_float32(columns.dtype))
        live = jnp.any(mixing > 0, axis=1)
        return joined_mixtures(rule, mixing, inner, columns, alive, live, state, axis)

    return Rule(init, apply)


def groups(order: Array, alive: Array, size: int, dtype: jnp.dtype) -> Array:
    """The share of each worker in each group, `[ceil(n / size), n]`: groups follow the order `[n]`, the dead have 0."""
    workers = order.shape[0]
    group = jnp.zeros(workers, jnp.int32).at[order].set(jnp.arange(workers, dtype=jnp.int32) // size)
    members = (group == jnp.arange(-(-workers // size), dtype=jnp.int32)[:, None]) & alive
    shares = members.astype(dtype)
    return shares / jnp.maximum(jnp.sum(shares, axis=1, keepdims=True), 1.0)
