"""Attacks by transfer: found on a model that is known, tried on one that is not.

A model whose own gradient is hidden often falls to what a surrogate, trained on the same data, falls to.
"""

from jaxrobust.typing import Array, Attack, Predict


def transfer(attack: Attack, surrogate: Predict) -> Attack:
    """Aim an attack at a surrogate, whatever model it is given.

    Args:
      attack: finds the images; on a surrogate that is already wrong it may leave them as they are, so that one which
        goes to its end whatever happens, as `pgd` does, transfers best.
      surrogate: `[batch, ...] -> [batch, class]` logits, whose gradient is taken.

    Returns:
      `(key or keys [batch], logits_fn, images [batch, ...], labels) -> images`, which never asks logits_fn.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import attacks, geometry
      >>> known = lambda x: jnp.concatenate([0.5 - x, x - 0.5], 1)
      >>> hidden = lambda x: jnp.round(known(x))
      >>> attack = attacks.transfer(attacks.pgd(geometry.linf(), 0.25, steps=5), known)
      >>> attack(jax.random.key(0), hidden, jnp.array([[0.25]]), jnp.array([0])).round(2).tolist()
      [[0.5]]

    Reference: Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, "Practical Black-Box Attacks against Machine
    Learning", https://arxiv.org/abs/1602.02697, 2017.
    """

    def transferred(keys: Array, logits_fn: Predict, images: Array, labels: Array) -> Array:
        del logits_fn
        return attack(keys, surrogate, images, labels)

    return transferred
