r"""Which worker stands out: garbage, a flipped bit, a worker that sends the same thing again.

With c the mean of the workers' vectors, each shortened to the median length, and z_i how far a worker is from it,

.. math:: z_i = \log \|x_i - c\|^2 - \mathrm{median}_j \log \|x_j - c\|^2,

a worker is suspect in a step when :math:`z_i > 6 \sigma`, when its vector is not finite, or when its gradient has the
fingerprint of the step before. sigma is a running root mean square of z over the steps and the workers that were not
suspect, 0.1 at least; it begins at 1/2, twenty times the median distance. It costs two sums of n numbers over the axis,
and names a worker for the log: the rule decides by itself whom it trusts. What changes a vector by less than workers
differ anyhow is not seen.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxrobust.aggregation import axes
from jaxrobust.typing import Array, AxisName

THRESHOLD, FIRST_SPREAD, LEAST_SPREAD, RATE = 6.0, 0.5, 0.1, 0.01


class Suspicion(NamedTuple):
    """What was found so far.

    Attributes:
      suspect: int32, number of the worker that stood out last; -1 while none has.
      suspect_step: int32, the reduction in which it did, from 0 on; -1 while none has.
      suspicions: int32, in how many reductions a worker did.
      spread: float32, the running mean of z squared.
    """

    suspect: Array
    suspect_step: Array
    suspicions: Array
    spread: Array


def no_suspicion() -> Suspicion:
    """Before the first step.

    Returns:
      A `Suspicion`.

    Example:
      >>> int(no_suspicion().suspect)
      -1
    """
    return Suspicion(jnp.int32(-1), jnp.int32(-1), jnp.int32(0), jnp.float32(FIRST_SPREAD**2))


def suspect(
    columns: Array, alive: Array, stale: Array, before: Suspicion, step: Array, axis: AxisName | None
) -> Suspicion:
    """Look at what the workers sent in a step.

    Args:
      columns: `[n, m]`, a slice of every worker's vector, as decoded.
      alive: `[n]` bool, whose vectors are finite.
      stale: `[n]` bool, whose gradients have the fingerprint of the ones before.
      before: what was found so far.
      step: int32, number of the reduction.
      axis: over which columns are split; None where they are whole.

    Returns:
      The next `Suspicion`. Among two workers or fewer nobody stands out but by not being finite or being stale.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 0.1], [1.1, 0.0], [0.9, -0.1], [-90.0, 7.0]])
      >>> found = suspect(rows, jnp.ones(4, bool), jnp.zeros(4, bool), no_suspicion(), jnp.int32(7), None)
      >>> int(found.suspect), int(found.suspect_step)
      (3, 7)
    """
    workers = len(alive)
    rows = jnp.where(alive[:, None], columns, 0).astype(jnp.float32)
    lengths = jnp.sqrt(_summed(rows, axis))
    middle = jnp.nanmedian(jnp.where(alive, lengths, jnp.nan))
    shortened = jnp.where(lengths > middle, middle / lengths, 1.0)
    # A row of 1e30 has an infinite length, is shortened to nothing and infinitely far away.
    center = jnp.tensordot(jnp.where(alive, shortened, 0.0), rows, 1) / jnp.maximum(jnp.sum(alive), 1).astype(
        jnp.float32
    )
    logarithms = jnp.log(_summed(rows - center, axis))
    away = logarithms - jnp.nanmedian(jnp.where(alive, logarithms, jnp.nan))
    # Equal rows are no distance apart, and a worker at the center is none to fear.
    known = alive & ~jnp.isnan(away) & (away > -jnp.inf) & (workers > 2)
    away = jnp.where(known, away, 0.0)
    spread = jnp.sqrt(jnp.maximum(before.spread, LEAST_SPREAD**2))
    surprise = jnp.where(alive | ~jnp.any(alive), away / spread, jnp.inf)
    # Where all repeat themselves, as in full batches at a step size of 0, nobody lags.
    surprise = jnp.where(alive & stale & ~jnp.all(stale), jnp.finfo(jnp.float32).max, surprise)
    usual = surprise <= THRESHOLD
    found = ~jnp.all(usual)
    usual = usual & known
    seen = jnp.sum(jnp.where(usual, away, 0.0) ** 2) / jnp.maximum(jnp.sum(usual), 1).astype(jnp.float32)
    return Suspicion(
        suspect=jnp.where(found, jnp.argmax(surprise).astype(jnp.int32), before.suspect),
        suspect_step=jnp.where(found, step, before.suspect_step),
        suspicions=before.suspicions + found.astype(jnp.int32),
        spread=before.spread + jnp.float32(RATE) * jnp.where(jnp.any(usual), seen - before.spread, 0.0),
    )


def _summed(rows: Array, axis: AxisName | None) -> Array:
    """Squared lengths `[n]` of vectors whose columns are split."""
    squares = jnp.sum(rows**2, axis=1)
    return squares if axis is None else axes.total(squares, axis)
