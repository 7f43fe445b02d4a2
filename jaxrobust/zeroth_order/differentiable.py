r"""Gradients through what has none: `jax.grad` of a program with a black box inside.

.. math:: \bar z \approx \hat\nabla_z \, \langle \bar y, f(z) \rangle

The chain rule needs of f its product with the cotangent alone, and an estimator finds that from values of f. What lies
before and behind the black box is differentiated as ever: an interface of z numbers costs z queries, whatever the
number of parameters behind it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.typing import Array, Estimator, Key, PyTree


def differentiable(function: Callable[[PyTree], PyTree], estimator: Estimator) -> Callable[..., PyTree]:
    r"""Give a function a derivative that an estimator finds.

    .. math:: \bar z = \hat\nabla_z \, \langle \bar y, f(z) \rangle

    Args:
      function: of ONE example's input, a pytree of floats, to a pytree of floats: anything that JAX can call,
        `jax.pure_callback` and `black_box` included. For a batch, `jax.vmap(differentiable(...))`: coordinate j of all
        examples is then one call for all of them, where the function can take them together.
      estimator: of the gradient in the input; `coordinate()` for interfaces of some hundred numbers. Its state starts
        afresh in every call.

    Returns:
      `(inputs, key=None) -> outputs`, which `jax.grad` and `jax.vjp` pass through once; the key is for estimators that
      draw. What a query without an answer would have told of a cotangent is 0 there: it harms no other example. An
      integer output has no derivative and is refused.

    Raises:
      ValueError: when called, for leaves of inputs or outputs that are not floats, or for an estimator that draws
        without a key.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust.zeroth_order import black_box, coordinate
      >>> inner = differentiable(black_box(np.sin, (2,)), coordinate(1e-2, central=True))  # NumPy's sine
      >>> jax.grad(lambda w: jnp.sum(inner(w * jnp.array([0.0, 1.0]))))(0.0).round(3).item()
      1.0

    Reference: Zhang, Yao, Jia, Yi, Hong, Chang and Liu, "How to Robustify Black-Box ML Models? A Zeroth-Order
    Optimization Perspective", https://arxiv.org/abs/2203.14195, 2022.
    """

    @jax.custom_vjp
    def through(inputs: PyTree, key: Key) -> PyTree:
        return function(inputs)

    def forward(inputs: PyTree, key: Key) -> tuple[PyTree, tuple[PyTree, Key]]:
        return function(inputs), (inputs, key)

    def backward(kept: tuple[PyTree, Key], cotangent: PyTree) -> tuple[PyTree, Any]:
        inputs, key = kept

        def product(point: PyTree) -> Array:
            parts = jax.tree.map(lambda one, two: jnp.sum(one * two), function(point), cotangent)
            return sum(jax.tree.leaves(parts)[1:], jax.tree.leaves(parts)[0])

        found = jax.tree.map(
            lambda part: jnp.where(jnp.isfinite(part), part, 0), estimator(key, product, inputs).gradient
        )
        return found, np.zeros(key.shape, jax.dtypes.float0)

    through.defvjp(forward, backward)

    def call(inputs: PyTree, key: Key | None = None) -> PyTree:
        _check_floats("inputs", inputs)
        _check_floats("outputs", jax.eval_shape(function, inputs))
        if estimator.draws and key is None:
            raise ValueError("key must be given for an estimator that draws, got None: another one in every step")
        return through(inputs, jax.random.key(0) if key is None else key)

    return call


def _check_floats(what: str, tree: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            where = jax.tree_util.keystr(path) or "the only leaf"
            raise ValueError(f"{what} must be floats to have a derivative, got {jnp.result_type(leaf)} at {where}")
