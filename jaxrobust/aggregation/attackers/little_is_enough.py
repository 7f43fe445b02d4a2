r"""A little is enough: colluders stay within the spread of the honest, all on one side.

.. math:: b_j = \bar g_j - z \sigma_j, \qquad z = \Phi^{-1} \left( \frac{n - f - s}{n - f} \right), \quad
          s = \lfloor n / 2 + 1 \rfloor - f

with sigma_j the standard deviation among the honest, Phi the standard normal distribution and s the number of honest
workers that must be outbid for a majority.
"""

import math
from statistics import NormalDist

import jax.numpy as jnp

from jaxrobust.aggregation.attackers.attacker import Attacker, colluding
from jaxrobust.aggregation.attackers.directions import spread
from jaxrobust.typing import Array, Key


def little_is_enough(z: float | None = None) -> Attacker:
    r"""Send the honest mean less z standard deviations.

    .. math:: b_j = \bar g_j - z \sigma_j

    Args:
      z: the deviation; a negative one goes above the mean. None for the paper's, by `largest_deviation`.

    Returns:
      An `Attacker`; it raises ValueError for less than two honest workers, or where the paper gives no z.

    Raises:
      ValueError: for a z that is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> little_is_enough(1.5)(None, jnp.array([[1.0], [2.0], [3.0]]), jnp.zeros((1, 1))).tolist()
      [[0.5]]

    Reference: Baruch, Baruch and Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning",
    https://arxiv.org/abs/1902.06156, 2019 (algorithm 3).
    """
    if z is not None and not math.isfinite(z):
        raise ValueError(f"z must be finite, got {z}")

    def forge(key: Key | None, honest: Array, faulty: int) -> Array:
        del key
        deviation = largest_deviation(len(honest) + faulty, faulty) if z is None else z
        return jnp.mean(honest, axis=0) + deviation * spread(honest)

    return colluding(forge)


def largest_deviation(workers: int, faulty: int) -> float:
    r"""How many standard deviations pass for honest, were gradients Gaussian.

    .. math:: z = \Phi^{-1} \left( \frac{n - f - s}{n - f} \right), \qquad s = \lfloor n / 2 + 1 \rfloor - f

    It is 0 or less where few are faulty (n = 12, f = 2 gives 0): an attack then needs an explicit z.

    Args:
      workers: n, faulty ones included.
      faulty: f.

    Returns:
      z.

    Raises:
      ValueError: where no honest worker need be outbid, or all must: there is no quantile.

    Example:
      >>> round(largest_deviation(workers=50, faulty=12), 3)
      0.336
    """
    honest = workers - faulty
    outbid = workers // 2 + 1 - faulty
    if not 0 < outbid < honest:
        raise ValueError(
            f"z must be given for {faulty} faulty of {workers} workers, got None: it has no quantile there"
        )
    return NormalDist().inv_cdf((honest - outbid) / honest)
