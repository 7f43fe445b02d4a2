"""Half of the bits: float32's exponent with 8 bits of precision."""

import jax.numpy as jnp

from jaxrobust.aggregation.codecs.stateless import stateless
from jaxrobust.typing import Codec

_BFLOAT16 = stateless(encode=lambda key, x: x.astype(jnp.bfloat16), decode=lambda wire: wire.astype(jnp.float32))


def bfloat16() -> Codec:
    r"""Round each coordinate to the nearest bfloat16.

    .. math:: |Q(x_i) - x_i| \le 2^{-8} |x_i|

    Returns:
      A `Codec` without state, which draws nothing; numbers beyond bfloat16 become infinite.

    Example:
      >>> import jax.numpy as jnp
      >>> codec = bfloat16()
      >>> wire, _ = codec.encode(None, jnp.array([0.5, 1.001]), codec.init(2))
      >>> codec.decode(wire, ()).tolist()
      [0.5, 1.0]
    """
    return _BFLOAT16
