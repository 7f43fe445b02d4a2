"""Pytrees seen as one array, and functions seen as pytrees."""

from collections.abc import Callable

import jax
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from jaxrobust.typing import Array, Predict, PyTree


def as_one_array(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """All leaves as one vector; a tree of a single leaf keeps that leaf's shape, which some norms look at.

    Args:
      tree: pytree of arrays.

    Returns:
      The array, and a function from an array of that shape back to such a tree.

    Example:
      >>> import jax.numpy as jnp
      >>> array, restore = as_one_array([jnp.ones((2, 3))])
      >>> array.shape, as_one_array([jnp.ones((2, 3)), jnp.ones(2)])[0].shape
      ((2, 3), (8,))
    """
    leaves, structure = jax.tree.flatten(tree)
    if len(leaves) == 1:
        return leaves[0], lambda array: jax.tree.unflatten(structure, [array.astype(leaves[0].dtype)])
    return ravel_pytree(tree)


def as_argument(logits_fn: Predict) -> Partial:
    """A classifier as a pytree, so that programs take its parameters as arguments and never keep old ones.

    Args:
      logits_fn: a `jax.tree_util.Partial`, which stays as it is; a module that is a pytree (NNX, Equinox), whose arrays
        become arguments; or any other function, whose own arrays are constants of what is compiled for it first.

    Returns:
      A `Partial`.

    Example:
      >>> import jax.numpy as jnp
      >>> as_argument(lambda images: 2 * images)(jnp.ones(2)).tolist()
      [2.0, 2.0]
    """
    if isinstance(logits_fn, Partial):
        return logits_fn
    leaves = jax.tree.leaves(logits_fn)
    if len(leaves) == 1 and leaves[0] is logits_fn:
        return Partial(logits_fn)
    return Partial(_called, logits_fn)


def _called(model: Predict, images: Array) -> Array:
    return model(images)
