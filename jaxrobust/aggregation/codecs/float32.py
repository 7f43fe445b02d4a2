"""The codec that changes nothing: 32 bits a coordinate, the baseline of every other."""

from jaxrobust.aggregation.codecs.stateless import stateless
from jaxrobust.typing import Codec

_FLOAT32 = stateless(encode=lambda key, x: x, decode=lambda wire: wire)


def float32() -> Codec:
    r"""Send the vector as it is.

    .. math:: Q(x) = x

    Returns:
      A `Codec` without state, always the same one, so that a reduction can tell that nothing is encoded.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codec = float32()
      >>> wire, _ = codec.encode(jax.random.key(0), jnp.array([0.5, -2.0]), codec.init(2))
      >>> codec.decode(wire, ()).tolist()
      [0.5, -2.0]
    """
    return _FLOAT32
