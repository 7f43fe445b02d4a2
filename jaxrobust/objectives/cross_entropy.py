r"""Cross-entropy with label smoothing: :math:`-\sum_k q_k \log p_k`, q = (1 - s) onehot(y) + s / classes."""

import jax
import jax.numpy as jnp
import optax

from jaxrobust.typing import Array, Batch, Metrics, Model, Objective, Params, State


def cross_entropy(label_smoothing: float = 0.0) -> Objective:
    """Build the plain objective of classification.

    Args:
      label_smoothing: share s of the target that is spread over all classes, in [0, 1).

    Returns:
      The objective, with the metric "clean_accuracy" on the training batch.

    Raises:
      ValueError: if the share lies outside [0, 1).

    Example:
      >>> from jaxrobust import objectives
      >>> objectives.cross_entropy(label_smoothing=0.1).coupled
      False

    Reference: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", section 7,
    https://arxiv.org/abs/1512.00567, 2016.
    """
    check_smoothing(label_smoothing)

    def prepare(keys: Array, model: Model, params: Params, state: State, batch: Batch) -> tuple[()]:
        del keys, model, params, state, batch
        return ()

    def losses(
        prepared: tuple[()], keys: Array, model: Model, params: Params, state: State, batch: Batch
    ) -> tuple[Array, tuple[State, Metrics]]:
        del prepared, keys
        logits, state = model.apply(params, state, batch.inputs, train=True)
        found = smoothed_cross_entropy(logits, batch.targets, label_smoothing)
        return found, (state, {"clean_accuracy": hits(logits, batch.targets)})

    return Objective(prepare, losses)


def check_smoothing(label_smoothing: float) -> None:
    """Refuse a share outside [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")


def smoothed_cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> Array:
    """Cross-entropy `[batch]` of logits `[batch, class]` against smoothed integer labels `[batch]`."""
    if label_smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def hits(logits: Array, labels: Array) -> Array:
    """1 where the prediction is right, 0 elsewhere, `[batch]` float32."""
    return (jnp.argmax(logits, -1).astype(jnp.int32) == labels.astype(jnp.int32)).astype(jnp.float32)
