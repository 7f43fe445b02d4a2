r"""SOAR: second-order adversarial regularization, a bound of the inner maximum in place of an attack.

.. math:: \max_\delta\, g^\top \delta + \tfrac12 \delta^\top H \delta
   = \max_\delta\, \tfrac12 [\delta; 1]^\top M [\delta; 1] - \tfrac12 \le \tfrac12 (r^2 + 1) \|M\| - \tfrac12,
   \qquad M = \begin{pmatrix} H & g \\ g^\top & 1 \end{pmatrix}

with g and H the gradient and the Hessian of one example's loss at a perturbed image x', and r the largest Euclidean
length in the ball: r^2 = d radius^2 in l-infinity, radius^2 in l2. The loss is that at x' plus this bound. The norm of
M is the Frobenius norm, an upper bound of the spectral one, from :math:`\|M\|_F^2 = E \|Mz\|^2` with z standard normal;
or the spectral norm itself by power iteration. M is never formed: Hz is one more pass through the gradient.

Where a network bends in its rectifiers alone, H holds only what the softmax bends, while a finite difference of
gradients also sees the kinks between its two points: the two are different regularizers there.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxrobust.attacks.pgd import pgd, repeat
from jaxrobust.attacks.starts import uniform_start
from jaxrobust.geometry import Geometry
from jaxrobust.objectives.adversarial import attacked_model, perturbation
from jaxrobust.objectives.cross_entropy import hits, smoothed_cross_entropy
from jaxrobust.objectives.foar import input_gradient
from jaxrobust.typing import Array, Attack, Batch, Key, Metrics, Model, Objective, Params, Shape, State

Vectors: TypeAlias = tuple[Array, Array]
"""For each example the first d entries, in the shape of its image `[batch, ...]`, and the last one `[batch]`."""
Multiply: TypeAlias = Callable[[Vectors], Vectors]
"""Each example's M times its own vector."""


def soar(
    geometry: Geometry,
    radius: float,
    *,
    samples: int = 1,
    power_iterations: int = 0,
    finite_difference: float | None = None,
    attack: Attack | None = None,
    attack_in_training_mode: bool = False,
) -> Objective:
    """Build the objective of second-order adversarial regularization.

    The loss is that of a pass in training mode; the regularizer is taken in evaluation mode (batch norm by the running
    statistics, as constants), where an example's gradient and Hessian are its own. A network trained so is to be judged
    by AutoAttack: the authors report 56.06 percent under PGD-20 and 18.25 under targeted APGD, ResNet-10 on CIFAR-10.

    Args:
      geometry: the norm of the perturbations, `linf` or `l2`.
      radius: of the ball, in units of the images' range [0, 1], positive.
      samples: draws of z whose mean square gives the Frobenius norm; 1 in the paper. The root of few draws is below the
        norm in the mean.
      power_iterations: with 1 or more the spectral norm takes the Frobenius norm's place, from as many products with M
        at fixed parameters; it is approached from below. 0 for the Frobenius norm.
      finite_difference: length h of (gradient(x' + h z) - gradient(x')) / h in place of the exact product Hz, 0.01 in
        the paper; None for the exact one.
      attack: finds x'; by default one step of half the radius from a uniform start in the ball of half the radius, as
        in the paper: at the images themselves a network learns to be flat there alone.
      attack_in_training_mode: whether that attack sees the batch's own statistics (batch norm) and not the running
        ones.

    Returns:
      The objective, with the metrics "adversarial_accuracy" (at x') and "regularizer" on the training batch.

    Raises:
      ValueError: for a number out of its range, another geometry, or both estimates of the norm at once.

    Example:
      >>> from jaxrobust import geometry, objectives
      >>> objectives.soar(geometry.linf(), 8 / 255, finite_difference=0.01).coupled
      False

    Reference: Ma, Faghri, Papernot and Farahmand, "SOAR: Second-Order Adversarial Regularization",
    https://arxiv.org/abs/2004.01832, 2020.
    """
    largest_squared_length(geometry, radius, 1)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if power_iterations < 0:
        raise ValueError(f"power_iterations must not be negative, got {power_iterations}")
    if samples > 1 and power_iterations:
        raise ValueError(f"samples are of the Frobenius norm: with power_iterations they must be 1, got {samples}")
    if finite_difference is not None and not finite_difference > 0:
        raise ValueError(f"finite_difference must be positive, got {finite_difference}: take None for exact products")
    first = pgd(geometry, radius, steps=1, step_size=radius / 2, start=_half_start) if attack is None else attack

    def prepare(keys: Array, model: Model, params: Params, state: State, batch: Batch) -> Array:
        logits_fn = attacked_model(model, params, state, attack_in_training_mode)
        return perturbation(first, keys, logits_fn, batch.inputs, batch.targets)

    def losses(
        delta: Array, keys: Array, model: Model, params: Params, state: State, batch: Batch
    ) -> tuple[Array, tuple[State, Metrics]]:
        points = batch.inputs + delta

        def matrix(params: Params, points: Array) -> Multiply:
            return bordered(lambda x: input_gradient(model, params, state, x, batch.targets), points, finite_difference)

        if power_iterations:
            fixed = matrix(*jax.lax.stop_gradient((params, points)))
            norm = spectral_norm(keys, matrix(params, points), fixed, points, power_iterations)
        else:
            norm = frobenius_norm(keys, matrix(params, points), points, samples)
        squared = largest_squared_length(geometry, radius, math.prod(points.shape[1:]))
        regularizer = second_order_bound(norm, squared)
        logits, after = model.apply(params, state, points, train=True)
        found = smoothed_cross_entropy(logits, batch.targets, 0.0) + regularizer
        return found, (after, {"adversarial_accuracy": hits(logits, batch.targets), "regularizer": regularizer})

    return Objective(prepare, losses)


def second_order_bound(matrix_norm: Array, squared_length: float) -> Array:
    r"""An upper bound of :math:`g^\top \delta + \delta^\top H \delta / 2` over a ball.

    Args:
      matrix_norm: of M = [[H, g], [g', 1]]: its spectral norm, or any number above it.
      squared_length: r^2, the largest :math:`\|\delta\|_2^2` in the ball.

    Returns:
      (r^2 + 1) / 2 * matrix_norm - 1 / 2.

    Example:
      >>> float(second_order_bound(jnp.float32(1.5), 3.0))
      2.5
    """
    return (squared_length + 1) / 2 * matrix_norm - 0.5


def largest_squared_length(geometry: Geometry, radius: float, dimension: int) -> float:
    """The largest squared Euclidean length in a ball: dimension * radius^2 in l-infinity, radius^2 in l2.

    Args:
      geometry: `linf` or `l2`.
      radius: of the ball, positive.
      dimension: entries of one example.

    Returns:
      The number.

    Raises:
      ValueError: for another geometry, or a radius that is not positive.

    Example:
      >>> from jaxrobust import geometry
      >>> largest_squared_length(geometry.linf(), 0.5, 64)
      16.0
    """
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    if geometry.transform is not None or geometry.exponent not in (2, math.inf):
        raise ValueError(f"geometry must be linf or l2, got {geometry.name}: take foar for any other")
    return radius**2 * (1 if geometry.exponent == 2 else dimension)


def bordered(gradient: Callable[[Array], Array], points: Array, finite_difference: float | None = None) -> Multiply:
    """The matrices M of a batch as products.

    Args:
      gradient: `(points) -> [batch, ...]`, each example's own gradient.
      points: `[batch, ...]`, where it is taken.
      finite_difference: length of a difference of gradients in place of the exact Hessian-vector product; None for it.

    Returns:
      `(z [batch, ...], s [batch]) -> (H z + s g, g . z + s)`.
    """
    if finite_difference is None:
        slope, product = jax.linearize(gradient, points)
    else:
        slope = gradient(points)

        def product(z: Array) -> Array:
            return (gradient(points + finite_difference * z) - slope) / finite_difference

    def multiply(vectors: Vectors) -> Vectors:
        z, last = vectors
        return product(z) + _rows(last, z) * slope, _inner(slope, z) + last

    return multiply


def frobenius_norm(keys: Array, multiply: Multiply, like: Array, samples: int) -> Array:
    r"""The root of the mean of :math:`\|Mz\|^2` over standard normal z, whose expectation is the squared norm.

    Args:
      keys: `[batch]`.
      multiply: each example's M.
      like: `[batch, ...]`, of the shape and dtype of the points.
      samples: how many z.

    Returns:
      `[batch]`, differentiable.
    """

    def square(number: Array) -> Array:
        draws = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return _squared_length(multiply(_normal(draws, like)))

    return jnp.sqrt(jnp.mean(jax.vmap(square)(jnp.arange(samples)), axis=0))


def spectral_norm(keys: Array, multiply: Multiply, fixed: Multiply, like: Array, iterations: int) -> Array:
    r"""The largest absolute eigenvalue by power iteration from a standard normal vector, approached from below.

    The vector is found with constant matrices and :math:`\|Mv\|` is differentiated with v held fixed, which is the
    norm's own derivative where the iteration has converged.

    Args:
      keys: `[batch]`.
      multiply: each example's M, differentiable.
      fixed: the same as constants.
      like: `[batch, ...]`, of the shape and dtype of the points.
      iterations: products before the last one, at least 1.

    Returns:
      `[batch]`.

    Reference: Golub and Van Loan, "Matrix Computations", section 8.2.1, 4th edition, 2013.
    """
    found = repeat(lambda v: _unit(fixed(v)), _unit(_normal(keys, like)), iterations)
    return jnp.sqrt(_squared_length(multiply(jax.lax.stop_gradient(found))))


def _half_start(key: Key, geometry: Geometry, image: Array, radius: float) -> Array:
    return uniform_start(key, geometry, image, radius / 2)


def _normal(keys: Array, like: Array) -> Vectors:
    def draw(key: Key, shape: Shape) -> Array:
        return jax.random.normal(key, shape, like.dtype)

    both = jax.vmap(jax.random.split)(keys)
    return jax.vmap(lambda key: draw(key, like.shape[1:]))(both[:, 0]), jax.vmap(lambda key: draw(key, ()))(both[:, 1])


def _unit(vectors: Vectors) -> Vectors:
    length = jnp.sqrt(_squared_length(vectors))
    safe = jnp.where(length > 0, length, jnp.ones_like(length))
    return vectors[0] / _rows(safe, vectors[0]), vectors[1] / safe


def _squared_length(vectors: Vectors) -> Array:
    return _inner(vectors[0], vectors[0]) + vectors[1] ** 2


def _inner(one: Array, two: Array) -> Array:
    return jnp.sum(one * two, axis=tuple(range(1, one.ndim)))


def _rows(numbers: Array, like: Array) -> Array:
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))
