r"""Random directions in a pytree, all with :math:`E[u u^T] = I`: a difference quotient times its direction is unbiased.

Kinds are `"gaussian"`, N(0, I); `"sphere"`, uniform on the sphere of radius root d; `"rademacher"`, signs; and
`"orthogonal"`, of length root d, any d of them in a row at right angles to one another. With the unit sphere, as some
papers have it, the same estimate carries a factor d and its smoothing is root d times ours.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxrobust.precision import at_least_float32
from jaxrobust.typing import Array, Key, Params

Kind = Literal["gaussian", "sphere", "rademacher", "orthogonal"]


def directions_of(kind: Kind, key: Key, params: Params, count: int) -> Callable[[Array], Params]:
    """Directions of one estimate.

    Args:
      kind: how they are drawn.
      key: direction k is drawn with `fold_in(key, k)`: more directions keep the first ones.
      params: pytree of floats, d of them.
      count: how many there are; static.

    Returns:
      `number -> direction`, like params. All but orthogonal ones are drawn when they are asked for; orthogonal ones
      take d x count numbers of memory.
    """
    if kind == "gaussian":
        return lambda number: gaussian_like(jax.random.fold_in(key, number), params)
    if kind == "rademacher":
        return lambda number: _drawn(jax.random.rademacher, jax.random.fold_in(key, number), params)
    if kind == "sphere":
        return lambda number: _on_sphere(gaussian_like(jax.random.fold_in(key, number), params))
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params))
    size, together = flat.size, min(count, flat.size)

    def frame(block: Array) -> Array:
        """`[d, together]`; the signs make it uniform among all frames."""
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(block * together + jnp.arange(together))
        drawn = jax.vmap(lambda own: jax.random.normal(own, (size,)))(keys).T
        basis, triangle = jnp.linalg.qr(drawn)
        return basis * jnp.sign(jnp.diagonal(triangle)) * jnp.sqrt(jnp.float32(size))

    frames = jnp.concatenate([frame(jnp.int32(block)) for block in range(-(-count // together))], axis=1)

    def direction(number: Array) -> Params:
        return jax.tree.map(lambda part, leaf: part.astype(leaf.dtype), unravel(frames[:, number]), params)

    return direction


def gaussian_like(key: Key, params: Params) -> Params:
    """Standard normal numbers in the shapes and dtypes of params; a leaf's draw depends on its number alone."""
    return _drawn(jax.random.normal, key, params)


def check_directions(count: int, smoothing: float = 1.0, kind: str = "gaussian") -> None:
    """Refuse what no estimate can be made of."""
    if count < 1:
        raise ValueError(f"directions must be positive, got {count}")
    if not smoothing > 0:
        raise ValueError(f"smoothing must be positive, got {smoothing}")
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")


def kept_key(key: Key) -> Key:
    """A key that a state can hold from its `init` on: a new-style one, of JAX's own implementation.

    Raises:
      ValueError: for a key of another implementation, whose shape no `init` can know.
    """
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    found, default = (jax.random.key_impl(each) for each in (key, jax.random.key(0)))
    if found != default:
        raise ValueError(
            f"key must be of the default implementation, {default}, got {found}: a state holds it; "
            "set jax_default_prng_impl"
        )
    return key


def moved(params: Params, direction: Params, step: float) -> Params:
    """Params, a step along a direction further."""
    return jax.tree.map(lambda leaf, u: leaf + step * u, params, direction)


def mean_of(total: Params, answered: Array, params: Params) -> Params:
    """The mean over the directions that gave an answer, in params' dtypes; NaN where none did."""
    return jax.tree.map(lambda sum_, leaf: (sum_ / answered.astype(sum_.dtype)).astype(leaf.dtype), total, params)


def zeros_to_sum(params: Params) -> Params:
    """Zeros like params, wide enough to add many directions up: a sum in 16 bits would lose the later ones."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, at_least_float32(leaf.dtype)), params)


def add_scaled(total: Params, scale: Array, direction: Params) -> Params:
    """A sum with one more direction; one without an answer, whose slope is not finite, is left out."""
    scale = jnp.where(jnp.isfinite(scale), scale, 0)
    return jax.tree.map(lambda sum_, u: sum_ + scale.astype(sum_.dtype) * u.astype(sum_.dtype), total, direction)


def _drawn(draw: Callable, key: Key, params: Params) -> Params:
    leaves, structure = jax.tree.flatten(params)
    keys = (jax.random.fold_in(key, number) for number in range(len(leaves)))
    return structure.unflatten([draw(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)])


def _on_sphere(direction: Params) -> Params:
    leaves = jax.tree.leaves(direction)
    squares = sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves)
    factor = jnp.sqrt(jnp.float32(sum(leaf.size for leaf in leaves)) / squares)
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), direction)
