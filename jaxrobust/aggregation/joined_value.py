"""A worker's loss as all workers' loss, in value and in gradient: what line searches behind a reduction must see."""

from collections.abc import Callable

import jax

from jaxrobust.typing import Array, Params, PyTree


def joined_value(value_fn: Callable[[Params], Array], combine: Callable[[PyTree], PyTree]) -> Callable[[Params], Array]:
    """Join a function's value and its gradient over workers.

    The gradient of a mean over a mapped axis with respect to one worker's parameters is that worker's part alone; a
    search that takes gradients of it (`optax.scale_by_zoom_linesearch`) would lead workers apart. Each gradient that a
    search asks for is joined as `combine` does it, by the mean or the median in 32 bits: no codec and no rule.

    Args:
      value_fn: `(params) -> scalar`, of this worker's examples.
      combine: how numbers, and trees like params, become one over the workers, as
        `lambda tree: jax.lax.pmean(tree, "data")` or, of a reduction, `lambda tree: reduce.combine(tree, state)`.

    Returns:
      A function like `value_fn`, differentiable once in reverse.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def slope(target):
      ...     mean = joined_value(lambda x: (x - target) ** 2, lambda tree: jax.lax.pmean(tree, "data"))
      ...     return jax.grad(mean)(0.0)
      >>> jax.vmap(slope, axis_name="data")(jnp.array([1.0, 3.0])).tolist()
      [-4.0, -4.0]
    """

    @jax.custom_vjp
    def value(params: Params) -> Array:
        return combine(value_fn(params))

    def forward(params: Params) -> tuple[Array, PyTree]:
        return combine(jax.value_and_grad(value_fn)(params))

    def backward(slope: PyTree, cotangent: Array) -> tuple[PyTree]:
        return (jax.tree.map(lambda leaf: cotangent.astype(leaf.dtype) * leaf, slope),)

    value.defvjp(forward, backward)
    return value
