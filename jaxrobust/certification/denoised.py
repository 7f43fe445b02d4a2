r"""A denoiser before a frozen classifier, as one classifier that certificates, evaluations and attacks take.

.. math:: x \mapsto f(D(x)), \qquad g(x) = \arg\max_c P(f(D(x + \epsilon)) = c)

Certificates hold for g whatever D and f are: the classifier stays what it was, and smoothing sees their composition.
"""

from collections.abc import Callable

import jax
from jax.tree_util import Partial

from jaxrobust.trees import as_argument
from jaxrobust.typing import Array, Evaluated, Evaluation, Key, Predict, Source


def denoised(denoise: Predict, classifier: Callable[[Array], Array]) -> Predict:
    """Compose a denoiser with a classifier.

    Args:
      denoise: images `[batch, ...]` to images `[batch, ...]`. A `jax.tree_util.Partial` or a module that is a pytree
        carries its weights as arguments of what is compiled.
      classifier: ONE image to logits `[class]`, as `objectives.denoised_smoothing` takes it; a `zeroth_order.black_box`
        is one, and is asked for a batch in one call.

    Returns:
      `[batch, ...] -> [batch, class]`, for `certify`, `predict`, `certified` and any evaluation.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import certification
      >>> def score(image):  # class 1 above one half
      ...     return jnp.stack([0.5 - image[0], image[0] - 0.5])
      >>> logits_fn = certification.denoised(jnp.round, score)
      >>> found = certification.certify(jax.random.key(0), logits_fn, jnp.array([0.9]), samples=1000)
      >>> found.label, 0.2 < found.radius <= 0.4
      (1, True)

    Reference: Salman, Sun, Yang, Kapoor and Kolter, "Denoised Smoothing: A Provable Defense for Pretrained
    Classifiers", https://arxiv.org/abs/2003.01908, 2020.
    """
    return Partial(_composed, as_argument(denoise), as_argument(classifier))


def behind_denoiser(classifier: Callable[[Array], Array], evaluation: Evaluation) -> Evaluation:
    """Evaluate a classifier behind the denoiser that is trained.

    Args:
      classifier: ONE image to logits `[class]`.
      evaluation: of classifiers, such as `certified(sigma)` or `attacks.accuracy()`.

    Returns:
      `(key, predict, source) -> Evaluated` where predict is the denoiser, images to images.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust import attacks, certification, data
      >>> source = data.arrays(np.array([[0.2], [0.6]], np.float32), np.array([1, 1]), shuffle=False)
      >>> evaluate = certification.behind_denoiser(lambda image: jnp.array([0.5, image[0]]), attacks.accuracy())
      >>> evaluate(jax.random.key(0), lambda images: images, source).metrics["clean"]
      0.5
    """

    def evaluate(key: Key, predict: Predict, source: Source) -> Evaluated:
        return evaluation(key, denoised(predict, classifier), source)

    return evaluate


def _composed(denoise: Partial, classifier: Partial, images: Array) -> Array:
    return jax.vmap(classifier)(denoise(images))
