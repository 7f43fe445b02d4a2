r"""Error feedback: what a message leaves out is kept, and added to the next one.

.. math:: p_t = x_t + e_t, \quad e_{t+1} = p_t - a \, Q(p_t), \quad
          \sum_{t < T} a \, Q(p_t) = \sum_{t < T} x_t - e_T

The sum of all messages is the sum of all vectors, up to one memory. It stays bounded where a Q is a contraction,
E ||p - a Q(p)||^2 <= (1 - delta) ||p||^2.
"""

from typing import Any

import jax.numpy as jnp

from jaxrobust.typing import Array, AxisName, Codec, Key, PyTree, State


def error_feedback(codec: Codec, relative_variance: float = 0.0) -> Codec:
    r"""Give a codec a memory of its errors.

    .. math:: a = \frac{1}{1 + \omega}

    A biased codec such as `sign` is a contraction as it is. An unbiased one of relative variance
    :math:`\omega = E \|Q(v) - v\|^2 / \|v\|^2` is one only below :math:`\omega = 1`: above, memories grow without
    bound. Scaled by a, it is a contraction with delta = a whatever omega is.

    Args:
      codec: Q.
      relative_variance: omega; 0 sends Q as it is. `variance_bound` gives one that no vector exceeds.

    Returns:
      A `Codec` whose own memory is `(error [d] float32, memory of Q)`, zeros at first. Where an error is not finite,
      the memory stays as it was: the message was not usable.

    Raises:
      ValueError: for a negative variance.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.aggregation.codecs import sign
      >>> codec = error_feedback(sign(bucket_size=2))
      >>> shared, own = codec.init(2)
      >>> wire, own = codec.encode(None, jnp.array([1.0, -3.0]), (shared, own))
      >>> codec.decode(wire, shared).tolist(), own[0].tolist()
      ([2.0, -2.0], [-1.0, -1.0])

    Reference: Karimireddy, Rebjock, Stich and Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
    Schemes", https://arxiv.org/abs/1901.09847, 2019 (algorithm 2).
    """
    if not relative_variance >= 0:
        raise ValueError(f"relative_variance must not be negative, got {relative_variance}")
    factor = 1 / (1 + relative_variance)

    def init(dimension: int) -> tuple[State, State]:
        shared, own = codec.init(dimension)
        return shared, (jnp.zeros(dimension, jnp.float32), own)

    def encode(key: Key, x: Array, state: tuple[State, Any]) -> tuple[PyTree, State]:
        shared, (error, own) = state
        wanted = x.astype(jnp.float32) + error
        wire, own = codec.encode(key, wanted, (shared, own))
        left = wanted - decode(wire, shared)[: wanted.size]
        # A reduction leaves out a vector that is not finite as a whole: none of it was sent.
        return wire, (jnp.where(jnp.all(jnp.isfinite(left)), left, error), own)

    def decode(wire: PyTree, shared: State) -> Array:
        return factor * codec.decode(wire, shared)

    def observe(x: Array, state: tuple[State, Any], axis: AxisName) -> State:
        shared, (error, own) = state
        return codec.observe(x.astype(jnp.float32) + error, (shared, own), axis)

    return Codec(init, encode, decode, observe, codec.adapt, codec.bucket_size)
