"""Losses that an attack maximizes: `(logits [batch, class], labels) -> [batch]`, in float32 at least.

What an attack is given as labels goes to its loss untouched: integer classes, or the clean prediction.
"""

import jax
import jax.numpy as jnp
import optax

from jaxrobust.precision import widened
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
    return optax.softmax_cross_entropy_with_integer_labels(widened(logits), labels)


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
    logits = widened(logits)
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    best_other = jnp.max(jnp.where(own, -jnp.inf, logits), axis=-1)
    return best_other - _of_class(logits, labels)


def dlr(logits: Array, labels: Array) -> Array:
    r"""The difference-of-logits ratio, the margin in units of the logits' own spread.

    .. math:: \frac{\max_{j \ne y} z_j - z_y}{z_{(1)} - z_{(3)} + 10^{-12}}

    with :math:`z_{(k)}` the k-th largest. It changes neither with a shift nor with a positive scale of the logits, so
    that a classifier of large logits, whose cross-entropy has no gradient left, cannot hide. Of two classes it is the
    margin.

    Args:
      logits: `[batch, class]`.
      labels: `[batch]` integers in [0, class).

    Returns:
      `[batch]`, at least -1; positive where the prediction is wrong.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.attacks import losses
      >>> losses.dlr(jnp.array([[1.0, 5.0, 2.0, 0.0]]), jnp.array([1])).tolist()
      [-0.75]

    Reference: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks", https://arxiv.org/abs/2003.01690, 2020, equation 6.
    """
    logits = widened(logits)
    if logits.shape[-1] < 3:
        return margin(logits, labels)
    largest, _ = jax.lax.top_k(logits, 3)
    return margin(logits, labels) / (largest[..., 0] - largest[..., 2] + 1e-12)


def targeted_dlr(logits: Array, labels: Array, targets: Array) -> Array:
    r"""The difference-of-logits ratio toward one wrong class.

    .. math:: \frac{z_t - z_y}{z_{(1)} - (z_{(3)} + z_{(4)}) / 2 + 10^{-12}}

    Of fewer than four classes it is the numerator alone. For an attack with targets of its own:
    `lambda logits, labels: targeted_dlr(logits, labels["class"], labels["target"])`.

    Args:
      logits: `[batch, class]`.
      labels: `[batch]` integers in [0, class).
      targets: `[batch]` integers in [0, class), the classes that are to win.

    Returns:
      `[batch]`, positive where the target's logit is above the label's.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.attacks import losses
      >>> losses.targeted_dlr(jnp.array([[1.0, 5.0, 3.0, 1.0]]), jnp.array([1]), jnp.array([2])).tolist()
      [-0.5]

    Reference: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks", https://arxiv.org/abs/2003.01690, 2020, equation 7.
    """
    logits = widened(logits)
    difference = _of_class(logits, targets) - _of_class(logits, labels)
    if logits.shape[-1] < 4:
        return difference
    largest, _ = jax.lax.top_k(logits, 4)
    return difference / (largest[..., 0] - (largest[..., 2] + largest[..., 3]) / 2 + 1e-12)


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
    return optax.kl_divergence(jax.nn.log_softmax(widened(logits)), widened(probabilities))


def _of_class(logits: Array, classes: Array) -> Array:
    """Each row's logit of one class."""
    return jnp.sum(jnp.where(jax.nn.one_hot(classes, logits.shape[-1], dtype=bool), logits, 0), axis=-1)
