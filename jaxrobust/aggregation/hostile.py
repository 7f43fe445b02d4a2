r"""Hostile workers, for drills and papers: what a reduction makes of gradients that an attacker chose.

.. math:: g = F(a(g_1), \dots, a(g_f), g_{f+1}, \dots, g_n)
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxrobust.aggregation import axes
from jaxrobust.aggregation.all_reduce import ReduceState, Reduction
from jaxrobust.typing import Array, Key, Params, PyTree, State

Attacker: TypeAlias = Callable[[Key | None, PyTree], PyTree]
"""`(key, honest gradient) -> sent gradient`, of one worker; without randomness it ignores the key."""


def hostile(reduce: Reduction, attacker: Attacker, faulty: int, *, key: Key | None = None) -> Reduction:
    """Let the first workers send what an attacker makes of their gradients.

    Args:
      reduce: any reduction.
      attacker: makes the gradient that a faulty worker sends.
      faulty: f, how many workers are faulty; less than all.
      key: equal on all workers, for an attacker that draws; it is given one of its own per worker and step.

    Returns:
      A `Reduction` with the state of `reduce`.

    Raises:
      ValueError: for a negative number of faulty workers, and in the first step where no honest worker is left.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.aggregation import exact_mean
      >>> reduce = hostile(exact_mean("data"), sign_flip(scale=10.0), faulty=1)
      >>> gradients, state = jnp.array([1.0, 1.0, 1.0]), reduce.init(jnp.array(0.0))
      >>> reduced, _ = jax.vmap(reduce.update, in_axes=(0, None), axis_name="data")(gradients, state)
      >>> round(float(reduced[0]), 4)
      -2.6667
    """
    if faulty < 0:
        raise ValueError(f"faulty must not be negative, got {faulty}")

    def update(
        gradients: PyTree, state: ReduceState, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, State]:
        if faulty >= axes.size(reduce.axis):
            raise ValueError(f"faulty must be less than the {axes.size(reduce.axis)} workers, got {faulty}")
        worker = axes.position(reduce.axis)
        own = None if key is None else jax.random.fold_in(jax.random.fold_in(key, state.shared.count), worker)
        sent = jax.tree.map(
            lambda bad, good: jnp.where(worker < faulty, bad, good), attacker(own, gradients), gradients
        )
        return reduce.update(sent, state, params, **extra)

    return Reduction(reduce.init, update, reduce.combine, reduce.axis, reduce.averages)


def sign_flip(scale: float = 1.0) -> Attacker:
    r"""Send the gradient's opposite.

    .. math:: a(g) = -\gamma g

    Args:
      scale: gamma > 0.

    Returns:
      An attacker for `hostile`.

    Raises:
      ValueError: for a scale that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> sign_flip(scale=2.0)(None, jnp.array([1.0, -3.0])).tolist()
      [-2.0, 6.0]

    Reference: Li, Xu, Chen, Giannakis and Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed
    Learning from Heterogeneous Datasets", https://arxiv.org/abs/1811.03761, 2019 (section 5).
    """
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")

    def attack(key: Key | None, gradient: PyTree) -> PyTree:
        del key

        def flip(leaf: Array) -> Array:
            return -scale * leaf

        return jax.tree.map(flip, gradient)

    return attack
