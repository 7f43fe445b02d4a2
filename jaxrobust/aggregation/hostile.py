r"""Hostile workers, for drills and papers: what a reduction makes of gradients that an attacker chose.

.. math:: g = F(b_1, \dots, b_f, g_{f+1}, \dots, g_n), \qquad (b_1, \dots, b_f) = a(\text{key}, H, G)

A drill, not a thing for a pod: an omniscient attacker sees all gradients, so that every device gathers and holds n x d
numbers, and computes the attack.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxrobust.aggregation import axes
from jaxrobust.aggregation.attackers.attacker import Attacker
from jaxrobust.aggregation.reduction import ReduceState, Reduction
from jaxrobust.typing import Key, Params, PyTree, State


def hostile(reduce: Reduction, attacker: Attacker, faulty: int, *, key: Key | None = None) -> Reduction:
    """Let the first workers send what an attacker makes of all workers' gradients.

    Each gradient is one vector to the attacker, in float32 (in float64 if a leaf is); what it makes is sent in the
    leaves' own dtypes. The honest workers' gradients are passed on as they are. The workers are those of the
    reduction's axis, so that this runs wherever the reduction does; in the hierarchical form they are groups, whose
    members all send the same.

    Args:
      reduce: any reduction.
      attacker: `(key, honest [n - f, d], own [f, d]) -> sent [f, d]`, as `aggregation.attackers` makes them.
      faulty: f, how many workers are faulty; less than all. With 0 the reduction itself is given back.
      key: equal on all workers, for an attacker that draws: it is given `fold_in(key, t)` in step t. Pass another than
        the reduction's, since an attacker must not know what a rule draws.

    Returns:
      A `Reduction` with the state of `reduce`.

    Raises:
      ValueError: for a negative number of faulty workers, and in the first step where no honest worker is left or the
        attacker sends anything but `[f, d]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.aggregation import exact_mean
      >>> from jaxrobust.aggregation.attackers import sign_flip
      >>> reduce = hostile(exact_mean("data"), sign_flip(scale=10.0), faulty=1)
      >>> gradients, state = jnp.array([1.0, 1.0, 1.0]), reduce.init(jnp.array(0.0))
      >>> reduced, _ = jax.vmap(reduce.update, in_axes=(0, None), axis_name="data")(gradients, state)
      >>> round(float(reduced[0]), 4)
      -2.6667
    """
    if faulty < 0:
        raise ValueError(f"faulty must not be negative, got {faulty}")
    if faulty == 0:
        return reduce

    def update(
        gradients: PyTree, state: ReduceState, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, State]:
        outer = reduce.axis if reduce.inner is None else axes.names(reduce.axis)[:-1]
        workers, worker = axes.size(outer), axes.position(outer)
        if faulty >= workers:
            raise ValueError(f"faulty must be less than the {workers} workers, got {faulty}")
        double = any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(gradients))
        wide = jnp.float64 if double else jnp.float32
        vector, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(wide), gradients))
        rows = axes.gather(vector if reduce.inner is None else jax.lax.pmean(vector, reduce.inner), outer)
        count = axes.common(state.shared.count, reduce.axis)
        sent = attacker(None if key is None else jax.random.fold_in(key, count), rows[faulty:], rows[:faulty])
        if sent.shape != (faulty, vector.size):
            raise ValueError(
                f"an attacker must send {(faulty, vector.size)}, one row a faulty worker, got {sent.shape}"
            )
        forged = unravel(sent[jnp.minimum(worker, faulty - 1)])
        gradients = jax.tree.map(
            lambda bad, good: jnp.where(worker < faulty, bad.astype(good.dtype), good), forged, gradients
        )
        return reduce.update(gradients, state, params, **extra)

    return Reduction(reduce.init, update, reduce.combine, reduce.axis, reduce.averages, reduce.inner)
