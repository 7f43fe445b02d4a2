"""Losses that an attack maximizes: `(logits [batch, class], labels) -> [batch]`, in float32 at least.

What an attack is given as labels goes to its loss untouched: integer classes, or the clean prediction.
"""

import jax
import jax.numpy as jnp
import optax

from jaxrobust.typing import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    r"""Cross-entropy :math:`-\log p_y`.

    Args:
      logits: `[batch, class]`.
      labels: `[batch]` integers in [0, class).

    Returns:
      `[batch]`, not negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.attacks import losses
      >>> round(float(losses.cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
      1.3863

    Reference: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks",
    https://arxiv.org/abs/1706.06083, 2018.
    """
    return optax.softmax_cross_entropy_with_integer_labels(_precise(logits), labels)


def margin(logits: Array, labels: Array) -> Array:
    r"""The margin :math:`\max_{j \ne y} z_j - z_y`, positive where the prediction is wrong.

    Args:
      logits: `[batch, class]`.
      labels: `[batch]` integers in [0, class).

    Returns:
      `[batch]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.attacks import losses
      >>> losses.margin(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([1])).tolist()
      [-1.0]

    Reference: Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks",
    https://arxiv.org/abs/1608.04644, 2017.
    """
    logits = _precise(logits)
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    best_other = jnp.max(jnp.where(own, -jnp.inf, logits), axis=-1)
    return best_other - jnp.sum(jnp.where(own, logits, 0), axis=-1)


def kl_divergence(logits: Array, probabilities: Array) -> Array:
    r"""The divergence :math:`\mathrm{KL}(p \| \mathrm{softmax}(z))` from a clean prediction p.

    Args:
      logits: `[batch, class]`.
      probabilities: `[batch, class]`, each row summing to 1.

    Returns:
      `[batch]`, not negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.attacks import losses
      >>> round(float(losses.kl_divergence(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))[0]), 4)
      0.6931

    Reference: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy",
    https://arxiv.org/abs/1901.08573, 2019.
    """
    return optax.kl_divergence(jax.nn.log_softmax(_precise(logits)), _precise(probabilities))


def _precise(x: Array) -> Array:
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)
