"""No augmentation; the default of the augment slot."""

import jax.numpy as jnp

from jaxrobust.typing import Array, Augmentation, Batch, Params


def identity() -> Augmentation:
    """Leave the batch as it is.

    Returns:
      An `Augmentation` without parameters, whose penalty is 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.typing import Batch
      >>> batch = Batch(jnp.ones((2, 3)), jnp.arange(2), jnp.arange(2), jnp.ones(2))
      >>> after, penalty = identity().apply((), jax.random.split(jax.random.key(0), 2), batch, 0)
      >>> after is batch, float(penalty)
      (True, 0.0)
    """

    def apply(params: Params, keys: Array, batch: Batch, step: Array) -> tuple[Batch, Array]:
        del params, keys, step
        return batch, jnp.float32(0.0)

    return Augmentation(init=lambda key: (), apply=apply)
