r"""Adversarial training: :math:`\min_\theta E \max_{\|\delta\| \le r} \mathrm{CE}(f_\theta(x + \delta), y)`.

The attack stands for the inner maximum: PGD gives the training of Madry et al., FGSM from a uniform start the fast
adversarial training of Wong et al. The gradient is taken at the attacked images, held fixed.
"""

import jax

from jaxrobust.objectives.cross_entropy import check_smoothing, hits, smoothed_cross_entropy
from jaxrobust.typing import Array, Attack, Batch, Metrics, Model, Objective, Params, Predict, PyTree, State


def adversarial(attack: Attack, *, label_smoothing: float = 0.0, attack_in_training_mode: bool = False) -> Objective:
    """Build the objective of adversarial training.

    Args:
      attack: finds the images that are trained on; as `attacks.pgd` or `attacks.fgsm` gives it.
      label_smoothing: share of the target that is spread over all classes, in [0, 1).
      attack_in_training_mode: whether the attack sees the batch's own statistics (batch norm) and not the running ones.

    Returns:
      The objective, with the metric "adversarial_accuracy" on the training batch.

    Raises:
      ValueError: if the share lies outside [0, 1).

    Example:
      >>> from jaxrobust import attacks, geometry, objectives
      >>> fast = attacks.fgsm(geometry.linf(), 8 / 255, step_size=10 / 255, start=attacks.uniform_start)
      >>> objectives.adversarial(fast).coupled
      False

    Reference: Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial
    Attacks", https://arxiv.org/abs/1706.06083, 2018, equation 2.1; Wong, Rice and Kolter, "Fast is better than free",
    https://arxiv.org/abs/2001.03994, 2020.
    """
    check_smoothing(label_smoothing)

    def prepare(keys: Array, model: Model, params: Params, state: State, batch: Batch) -> Array:
        logits_fn = attacked_model(model, params, state, attack_in_training_mode)
        return perturbation(attack, keys, logits_fn, batch.inputs, batch.targets)

    def losses(
        delta: Array, keys: Array, model: Model, params: Params, state: State, batch: Batch
    ) -> tuple[Array, tuple[State, Metrics]]:
        del keys
        logits, state = model.apply(params, state, batch.inputs + delta, train=True)
        found = smoothed_cross_entropy(logits, batch.targets, label_smoothing)
        return found, (state, {"adversarial_accuracy": hits(logits, batch.targets)})

    return Objective(prepare, losses)


def attacked_model(model: Model, params: Params, state: State, training_mode: bool) -> Predict:
    """The function that an attack inside training climbs: in evaluation mode unless asked otherwise.

    Args:
      model: the network.
      params: its parameters, taken as constants.
      state: its state, taken as a constant; what a pass makes of it is dropped.
      training_mode: whether a pass sees the batch's own statistics.

    Returns:
      Inputs `[batch, ...]` to logits `[batch, class]`.
    """
    params, state = jax.lax.stop_gradient((params, state))
    return lambda images: model.apply(params, state, images, train=training_mode)[0]


def perturbation(attack: Attack, keys: Array, logits_fn: Predict, images: Array, labels: PyTree) -> Array:
    """What an attack adds to images, as a constant.

    Args:
      attack: finds the attacked images.
      keys: `[batch]`.
      logits_fn: the function that it climbs.
      images: `[batch, ...]` in [0, 1].
      labels: what the attack's loss compares with, leaves `[batch, ...]`.

    Returns:
      `[batch, ...]`, cut off from differentiation.
    """
    images, labels = jax.lax.stop_gradient((images, labels))
    return jax.lax.stop_gradient(attack(keys, logits_fn, images, labels) - images)
