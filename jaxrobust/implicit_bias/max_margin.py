r"""The classifier of the largest margin, by convex programming: the reference that optimizers are held against.

.. math:: w^\star = \arg\min_w \|w\| \quad \text{such that} \quad y_i \langle w, x_i \rangle \ge 1, \qquad
          \text{margin} = 1 / \|w^\star\|

Duality certifies it: for any weights :math:`\alpha \ge 0` of the examples no margin exceeds
:math:`\|\sum_i \alpha_i y_i x_i\|_* / \sum_i \alpha_i`.
"""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.geometry import Geometry
from jaxrobust.implicit_bias.margin import signs
from jaxrobust.typing import Array, Shape


class MaxMargin(NamedTuple):
    """The best linear classifier in a norm.

    Attributes:
      weights: of the shape of one input, with the smallest signed score 1.
      margin: the margin of the weights, 1 / norm(weights).
      bound: what no classifier's margin exceeds, by duality.
    """

    weights: np.ndarray
    margin: float
    bound: float


def max_margin(inputs: Array, labels: Array, geometry: Geometry) -> MaxMargin:
    """Solve for the largest margin with CVXPY (extra `cvxpy`).

    Args:
      inputs: `[batch, ...]`.
      labels: `[batch]`, classes {0, 1} or signs {-1, 1}.
      geometry: the norm of the weights: any that is a p-norm of a linear transform of them (all of the library's but
        `spectral`). The margin is measured in its dual norm, as in `margin`.

    Returns:
      A `MaxMargin`, in float64.

    Raises:
      ImportError: without CVXPY.
      cvxpy.error.SolverError: if the solver fails.
      ValueError: if no linear classifier separates the data, the norm is of another kind, or the solver left more than
        0.01 % between margin and bound.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> found = max_margin(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([1, 0]), geometry.l1())
      >>> found.weights.round(3).tolist(), round(found.margin, 3)
      ([0.5, -1.0], 0.667)

    Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
    https://arxiv.org/abs/2102.08868, 2021, section 3; Diamond and Boyd, "CVXPY", https://www.cvxpy.org, 2016.
    """
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError("max_margin needs CVXPY: pip install 'jaxrobust[cvxpy]'") from error
    if geometry.exponent is None:
        raise ValueError(f"geometry must be a p-norm of a linear transform, got {geometry.name}")
    shape = inputs.shape[1:]
    rows = np.asarray(signs(labels), np.float64)[:, None] * np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    weights = cvxpy.Variable(rows.shape[1])
    exponent: Any = geometry.exponent
    norm = cvxpy.pnorm(_moduli(cvxpy, geometry, weights, shape), exponent)
    separated = rows @ weights >= 1
    problem = cvxpy.Problem(cvxpy.Minimize(norm), [separated])
    with warnings.catch_warnings():
        # "Solution may be inaccurate": the bound below says how accurate it is.
        warnings.simplefilter("ignore", UserWarning)
        problem.solve(solver=cvxpy.CLARABEL)
    if weights.value is None:
        raise ValueError(f"inputs must be linearly separable by their labels, got a problem that is {problem.status}")
    found = (weights.value / np.min(rows @ weights.value)).reshape(shape)
    shares = np.maximum(separated.dual_value, 0)
    with jax.enable_x64(True):
        margin = 1 / float(geometry.norm(jnp.asarray(found, jnp.float64)))
        bound = float(geometry.dual_norm(jnp.asarray((shares @ rows).reshape(shape), jnp.float64))) / shares.sum()
    if not abs(bound - margin) <= margin * 1e-4:
        raise ValueError(f"the solver ended with a margin of {margin:g} and a bound of {bound:g}: rescale the inputs")
    return MaxMargin(found, margin, float(bound))


def _moduli(cvxpy: Any, geometry: Geometry, weights: Any, shape: Shape) -> Any:
    """The moduli of the transform of the variable, as an expression of real numbers."""
    if geometry.transform is None:
        return weights
    with jax.enable_x64(True):
        basis = jnp.eye(weights.size, dtype=jnp.float64).reshape(-1, *shape)
        columns = np.asarray(jax.vmap(geometry.transform)(basis)).reshape(weights.size, -1).T
    return cvxpy.norm(cvxpy.vstack([columns.real @ weights, columns.imag @ weights]), axis=0)
