"""Nearest-neighbor mixing: before a rule joins them, each vector becomes the mean of those near it."""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation.rules.distances import gram, largest_square_root, squared_distances
from jaxrobust.aggregation.rules.krum import ranked
from jaxrobust.aggregation.rules.weighted import require, require_faulty
from jaxrobust.precision import widened
from jaxrobust.typing import Array, AxisName, Key, Rule, State


def nearest_neighbor_mixing(rule: Rule, *, faulty: int) -> Rule:
    r"""Give a rule the means of each worker's n - f nearest vectors, its own among them.

    .. math:: y_i = \frac{1}{n - f} \sum_{j \in N_i} x_j, \qquad F(y_1, \dots, y_n)

    A rule with bound kappa gets the bound 8 f / (n - f) (kappa + 1), which is of the best order there is. Lowest
    numbers win ties. A dead worker counts as one of the faulty.

    Args:
      rule: F.
      faulty: f, how many workers may lie; n > 2f.

    Returns:
      A `Rule` with F's state; the weights are those of the workers' own vectors.

    Raises:
      ValueError: for negative faulty, and, when applied, for too few workers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation import rules
      >>> rule = nearest_neighbor_mixing(rules.median(), faulty=1)
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [-90.0]])
      >>> rule.apply(None, rows, jnp.ones(4, bool), (), None)[0].tolist()
      [2.0]

    Reference: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan, "Fixing by Mixing: A Recipe for Optimal
    Byzantine ML under Heterogeneity", https://arxiv.org/abs/2302.01772, 2023 (algorithm 2).
    """
    require_faulty(faulty)

    def apply(
        key: Key | None, columns: Array, alive: Array, state: State, axis: AxisName | None
    ) -> tuple[Array, State, Array]:
        workers = alive.shape[0]
        require(workers, 2 * faulty + 1, "nearest_neighbor_mixing", "n > 2f", faulty)
        products = gram(columns, axis, alive)
        apart = jnp.where(jnp.eye(workers, dtype=bool), -1.0, squared_distances(products))
        near = (jax.vmap(ranked, (0, None))(apart, alive) < workers - faulty).astype(products.dtype)
        mixing = near / jnp.maximum(jnp.sum(near, axis=1, keepdims=True), 1.0)
        return joined_mixtures(rule, mixing, key, columns, alive, alive, state, axis)

    return Rule(rule.init, apply)


def joined_mixtures(
    rule: Rule,
    mixing: Array,
    key: Key | None,
    columns: Array,
    alive: Array,
    live: Array,
    state: State,
    axis: AxisName | None,
) -> tuple[Array, State, Array]:
    """Apply a rule to mixtures of the live workers' vectors.

    Args:
      rule: what joins the mixtures.
      mixing: `[k, n]`, the share of each worker in each mixture; 0 for the dead.
      key: the rule's key.
      columns: `[n, m]`.
      alive: `[n]`.
      live: `[k]`, which mixtures there are.
      state: the rule's state.
      axis: the axis over which the vectors are split, None where they are whole.

    Returns:
      `(column [m], state, weights [n])`; the column has the columns' dtype.
    """
    reach = largest_square_root(columns, axis)
    rows = jnp.where(alive[:, None], jnp.clip(widened(columns), -reach, reach), 0.0)
    mixtures = jnp.matmul(mixing, rows, precision=jax.lax.Precision.HIGHEST)
    column, state, weights = rule.apply(key, mixtures, live, state, axis)
    shares = jnp.sum(jnp.where(live, weights, 0.0)[:, None] * mixing.astype(weights.dtype), axis=0)
    return column.astype(columns.dtype), state, shares
