r"""Denoised smoothing: a denoiser that makes a frozen classifier fit for randomized smoothing.

.. math:: \min_\theta E \; \|D_\theta(x + n) - x\|^2 + \gamma \, \mathrm{CE}(f(D_\theta(x + n)), \hat y(x)), \quad
          n \sim N(0, \sigma^2 I), \; \hat y(x) = \arg\max_k f(x)_k

The target is the classifier's own answer to the clean image (its stability), so that no labels are needed. The
classifier f is any function of an image: one that JAX differentiates; a `zeroth_order.black_box` for estimators of the
gradient slot, which move the denoiser's weights; or a `zeroth_order.differentiable` one, whose estimates at the image
that enters it carry backpropagation through the denoiser.

Noise and target are drawn and asked once a step, before the losses: two queries of an estimator differ in the
parameters alone. With noise of its own for each, their difference would be noise over the smoothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrobust.typing import Array, Batch, Metrics, Model, Objective, Params, State

Classifier = Callable[[Array], Array]
"""ONE image to logits, or log-probabilities, `[class]`."""


class Prepared(NamedTuple):
    """What all queries of a step share.

    Attributes:
      noise: like the images.
      target: `[batch]` int32, the class of the clean image.
      answered: `[batch]`, whether the classifier answered for the clean image and for the denoised one.
      stability: `[batch]`, the cross-entropy at the step's first parameters; it stands in where a later query of an
        example has no answer, so that the example does not move a forward quotient (a central one it moves by the half
        that was answered); 0 where it never has.
    """

    noise: Array
    target: Array
    answered: Array
    stability: Array


def denoised_smoothing(classifier: Classifier, sigma: float = 0.25, *, stability: float = 1.0) -> Objective:
    r"""Build the objective of a denoiser before a frozen classifier.

    .. math:: \|D(x + n) - x\|^2 + \gamma \, \mathrm{CE}(f(D(x + n)), \hat y(x))

    An answer that is not finite, as a `black_box` gives where its function failed, takes the second term from its own
    example and from that query; the others are unharmed.

    Args:
      classifier: f, of ONE image; it is mapped over the batch, and a `black_box` then answers for all in one call. A
        step asks it twice for each example before the losses, and once in each evaluation of them.
      sigma: deviation of the noise, in the images' units; that of the certificates to come.
      stability: gamma, not negative; 0 trains the denoiser by itself, and the classifier is never asked.

    Returns:
      The objective, for a model from images to images. Its metrics are "denoising_error", the squared error of an
      image, and, where the classifier is asked, "agreement", whether the denoised image has the clean one's class, and
      "answered".

    Raises:
      ValueError: for a sigma that is not positive, or a negative weight.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models, objectives
      >>> from jaxrobust.typing import Batch
      >>> scale = models.function(lambda key, x: 1.0, lambda params, x: params * x)
      >>> batch = Batch(jnp.full((1, 4), 0.5), jnp.zeros(1, int), jnp.arange(1), jnp.ones(1))
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> objective = objectives.denoised_smoothing(lambda image: image[:2], stability=0.0)
      >>> prepared = objective.prepare(keys, scale, 1.0, {}, batch)
      >>> losses, _ = objective.losses(prepared, keys, scale, 1.0, {}, batch)
      >>> bool(jnp.allclose(losses, jnp.sum(prepared.noise**2)))
      True

    Reference: Salman, Sun, Yang, Kapoor and Kolter, "Denoised Smoothing: A Provable Defense for Pretrained
    Classifiers", https://arxiv.org/abs/2003.01908, 2020; the sum of both terms, from queries: Zhang, Yao, Jia, Yi,
    Hong, Chang and Liu, "How to Robustify Black-Box ML Models? A Zeroth-Order Optimization Perspective",
    https://arxiv.org/abs/2203.14195, 2022, equation 2.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if not stability >= 0:
        raise ValueError(f"stability must not be negative, got {stability}")

    def prepare(keys: Array, model: Model, params: Params, state: State, batch: Batch) -> Prepared:
        noise = sigma * jax.vmap(lambda key, image: jax.random.normal(key, image.shape, image.dtype))(
            keys, batch.inputs
        )
        if not stability:
            nothing = jnp.zeros(len(noise))
            return Prepared(noise, nothing.astype(jnp.int32), nothing > 0, nothing)
        clean = jax.vmap(classifier)(batch.inputs)
        denoised, _ = model.apply(params, state, batch.inputs + noise, train=True)
        target = jnp.argmax(clean, -1)
        found, answered = _cross_entropy(jax.vmap(classifier)(denoised), target)
        answered &= jnp.all(jnp.isfinite(clean), -1)
        return Prepared(noise, target, answered, jnp.where(answered, found, 0))

    def losses(
        prepared: Prepared, keys: Array, model: Model, params: Params, state: State, batch: Batch
    ) -> tuple[Array, tuple[State, Metrics]]:
        del keys
        denoised, state = model.apply(params, state, batch.inputs + prepared.noise, train=True)
        errors = jnp.sum(((denoised - batch.inputs) ** 2).reshape(len(denoised), -1), -1)
        if not stability:
            return errors, (state, {"denoising_error": errors})
        logits = jax.vmap(classifier)(denoised)
        found, answered = _cross_entropy(logits, prepared.target)
        answered &= prepared.answered
        metrics = {
            "denoising_error": errors,
            "agreement": (answered & (jnp.argmax(logits, -1) == prepared.target)).astype(jnp.float32),
            "answered": answered.astype(jnp.float32),
        }
        return errors + stability * jnp.where(answered, found, prepared.stability), (state, metrics)

    return Objective(prepare, losses)


def _cross_entropy(logits: Array, target: Array) -> tuple[Array, Array]:
    """Of each row, and whether it was answered; what has no answer enters as zeros, so that no derivative is NaN."""
    answered = jnp.all(jnp.isfinite(logits), -1)
    known = jnp.where(answered[:, None], logits, 0)
    return optax.softmax_cross_entropy_with_integer_labels(known, target), answered
