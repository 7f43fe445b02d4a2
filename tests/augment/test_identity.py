"""No augmentation."""

import jax
import jax.numpy as jnp

from jaxrobust.augment import identity, noise_range
from jaxrobust.typing import Batch


def test_nothing_changes_and_nothing_is_trained():
    batch = Batch(jnp.full((3, 4, 4, 1), 0.5), jnp.arange(3), jnp.arange(3), jnp.ones(3))
    keys = jax.random.split(jax.random.key(0), 3)
    after, penalty = identity().apply(identity().init(jax.random.key(0)), keys, batch, jnp.int32(0))
    assert after is batch
    assert penalty == 0
    assert not jax.tree.leaves(identity().init(jax.random.key(0)))
    other = noise_range()
    after, penalty = jax.jit(other.apply)(other.init(jax.random.key(0)), keys, batch, jnp.int32(0))
    assert penalty != 0
    assert not jnp.array_equal(after.inputs, batch.inputs)
