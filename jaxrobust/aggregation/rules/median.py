"""The coordinate-wise median of the live workers: bounded by honest values while fewer than half are faulty."""

import jax.numpy as jnp

from jaxrobust.aggregation.rules.stateless import stateless
from jaxrobust.typing import Array, AxisName, Key, Rule


def median() -> Rule:
    r"""Take the middle value of each coordinate.

    .. math:: F(x_1, \dots, x_n)_j = \tfrac12 ( x_{(\lceil m / 2 \rceil) j} + x_{(\lfloor m / 2 \rfloor + 1) j} )

    with x_(k)j the k-th smallest of the m live workers' values: the middle one, or the mean of the middle two.

    Returns:
      A `Rule` without state; the weights are the live workers' equal votes, 1 / m. With nobody alive the result is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 5.0], [2.0, 1e9], [9.0, 4.0], [3.0, 6.0]])
      >>> column, _, _ = median().apply(None, rows, jnp.array([True, True, True, True]), (), None)
      >>> column.tolist()
      [2.5, 5.5]

    Reference: Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", https://arxiv.org/abs/1803.01498, 2018 (definition 1).
    """
    return stateless(_apply)


def _apply(key: Key | None, columns: Array, alive: Array, axis: AxisName | None) -> tuple[Array, Array]:
    del key, axis
    living = jnp.sum(alive)
    # The dead sort behind all finite values; the middle of the first `living` rows never meets them.
    ordered = jnp.sort(jnp.where(alive[:, None], columns, jnp.inf), axis=0)
    middle = 0.5 * ordered[(living - 1) // 2] + 0.5 * ordered[living // 2]
    weights = alive.astype(columns.dtype) / living.astype(columns.dtype)
    return jnp.where(living > 0, middle, jnp.nan), weights
