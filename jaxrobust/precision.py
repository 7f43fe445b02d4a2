"""Computing in 32 bits or more where 16 are too few: sums over many numbers, norms, losses."""

import jax.numpy as jnp

from jaxrobust.typing import Array


def at_least_float32(dtype: jnp.dtype | type) -> jnp.dtype:
    """The dtype itself, of floating point, or float32 where it has fewer bits.

    >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def widened(x: Array) -> Array:
    """The same numbers of floating point, in 32 bits at least.

    >>> widened(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return x.astype(at_least_float32(x.dtype))
