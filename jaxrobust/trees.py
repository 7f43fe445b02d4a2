"""Pytrees seen as one array."""

from collections.abc import Callable

import jax
from jax.flatten_util import ravel_pytree

from jaxrobust.typing import Array, PyTree


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
