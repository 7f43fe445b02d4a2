"""Codecs without levels to adapt nor memory of errors: two functions make one."""

from collections.abc import Callable

from jaxrobust.typing import Array, AxisName, Codec, Key, PyTree, State


def stateless(encode: Callable[[Key, Array], PyTree], decode: Callable[[PyTree], Array], bucket_size: int = 1) -> Codec:
    """Make a `Codec` whose state is empty.

    Args:
      encode: `(key, x [d]) -> wire`, whose leaves have a leading axis of buckets.
      decode: `(wire) -> x [buckets * bucket_size]`.
      bucket_size: coordinates that share an entry of the leading axis.

    Returns:
      A `Codec`.

    Example:
      >>> import jax.numpy as jnp
      >>> half = stateless(lambda key, x: x.astype(jnp.float16), lambda wire: wire.astype(jnp.float32))
      >>> wire, own = half.encode(None, jnp.array([0.5]), half.init(1))
      >>> wire.dtype.name, half.decode(wire, ()).tolist(), own
      ('float16', [0.5], ())
    """

    def init(dimension: int) -> tuple[State, State]:
        del dimension
        return (), ()

    def encode_(key: Key, x: Array, state: tuple[State, State]) -> tuple[PyTree, State]:
        return encode(key, x), state[1]

    def decode_(wire: PyTree, shared: State) -> Array:
        del shared
        return decode(wire)

    def observe(x: Array, state: tuple[State, State], axis: AxisName) -> State:
        del x, axis
        return state[0]

    def adapt(shared: State) -> State:
        return shared

    return Codec(init, encode_, decode_, observe, adapt, bucket_size)
