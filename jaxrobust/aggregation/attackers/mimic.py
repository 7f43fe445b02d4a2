r"""Mimic: colluders copy one honest worker, so that where data differ its examples count f + 1 times.

.. math:: b = g_i, \quad i \in H
"""

from jaxrobust.aggregation.attackers.attacker import Attacker, colluding
from jaxrobust.typing import Array, Key


def mimic(worker: int = 0) -> Attacker:
    r"""Send what one honest worker sends: nothing tells the copies from it.

    .. math:: b = g_i

    Args:
      worker: which of the honest, from 0.

    Returns:
      An `Attacker`; it raises ValueError for a worker that there is not.

    Raises:
      ValueError: for a negative worker.

    Example:
      >>> import jax.numpy as jnp
      >>> mimic(worker=1)(None, jnp.array([[1.0], [2.0]]), jnp.zeros((2, 1))).tolist()
      [[2.0], [2.0]]

    Reference: Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
    https://arxiv.org/abs/2006.09365, 2022 (section 4.2).
    """
    if worker < 0:
        raise ValueError(f"worker must not be negative, got {worker}")

    def forge(key: Key | None, honest: Array, faulty: int) -> Array:
        del key, faulty
        if worker >= len(honest):
            raise ValueError(f"worker must be less than the {len(honest)} honest ones, got {worker}")
        return honest[worker]

    return colluding(forge)
