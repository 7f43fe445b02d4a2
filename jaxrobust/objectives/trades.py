r"""TRADES: accuracy on clean images plus agreement of clean and attacked predictions.

.. math:: \min_\theta E\; \mathrm{CE}(f(x), y) + \beta \max_{\|\delta\| \le r} \mathrm{KL}(p(x) \| p(x + \delta))

with p the softmax of f. The attack climbs the divergence from the clean prediction, which is computed once; the loss's
gradient flows through both p(x) and p(x + delta).
"""

import jax
import optax

from jaxrobust.attacks import losses as attack_losses
from jaxrobust.attacks.pgd import pgd
from jaxrobust.attacks.starts import Start, gaussian_start
from jaxrobust.geometry import Geometry
from jaxrobust.objectives.adversarial import attacked_model, perturbation
from jaxrobust.objectives.cross_entropy import check_smoothing, hits, smoothed_cross_entropy
from jaxrobust.typing import Array, Batch, Metrics, Model, Objective, Params, State


def trades(
    geometry: Geometry,
    radius: float,
    *,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float | None = None,
    start: Start | None = None,
    label_smoothing: float = 0.0,
    attack_in_training_mode: bool = False,
) -> Objective:
    """Build the TRADES objective.

    Args:
      geometry: the norm of the attack.
      radius: of the ball, in units of the images' range [0, 1], positive. The paper's CIFAR-10 runs take 0.031.
      beta: weight of the divergence, not negative; 6 in the paper's CIFAR-10 runs.
      steps: of the attack; 10 in the paper's code.
      step_size: norm of one of its steps; 2.5 * radius / steps by default, 0.007 in the paper's CIFAR-10 runs.
      start: where it begins; Gaussian noise of scale 0.001 by default, as in the paper's code.
      label_smoothing: share of the target that is spread over all classes, in [0, 1).
      attack_in_training_mode: whether the attack sees the batch's own statistics (batch norm) and not the running ones.

    Returns:
      The objective, with the metrics "clean_accuracy", "adversarial_accuracy" and "kl" on the training batch. Batch
      statistics pass through the clean images first, then through the attacked ones.

    Raises:
      ValueError: for a number out of its range.

    Example:
      >>> from jaxrobust import geometry, objectives
      >>> objectives.trades(geometry.linf(), 0.031, beta=6.0, steps=10, step_size=0.007).coupled
      False

    Reference: Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically Principled Trade-off between Robustness and
    Accuracy", https://arxiv.org/abs/1901.08573, 2019, equation 5 and algorithm 1.
    """
    check_robust_term(radius, beta, label_smoothing)
    attack = pgd(
        geometry,
        radius,
        steps=steps,
        step_size=step_size,
        loss=attack_losses.kl_divergence,
        start=gaussian_start() if start is None else start,
    )

    def prepare(keys: Array, model: Model, params: Params, state: State, batch: Batch) -> Array:
        logits_fn = attacked_model(model, params, state, attack_in_training_mode)
        clean = jax.nn.softmax(logits_fn(batch.inputs))
        return perturbation(attack, keys, logits_fn, batch.inputs, clean)

    def losses(
        delta: Array, keys: Array, model: Model, params: Params, state: State, batch: Batch
    ) -> tuple[Array, tuple[State, Metrics]]:
        del keys
        clean, state = model.apply(params, state, batch.inputs, train=True)
        attacked, state = model.apply(params, state, batch.inputs + delta, train=True)
        divergence = disagreement(clean, attacked)
        found = smoothed_cross_entropy(clean, batch.targets, label_smoothing) + beta * divergence
        metrics = {
            "clean_accuracy": hits(clean, batch.targets),
            "adversarial_accuracy": hits(attacked, batch.targets),
            "kl": divergence,
        }
        return found, (state, metrics)

    return Objective(prepare, losses)


def disagreement(clean: Array, attacked: Array) -> Array:
    """KL(softmax(clean) || softmax(attacked)), differentiable in both even where a probability underflows to 0.

    Args:
      clean: logits `[batch, class]`.
      attacked: logits `[batch, class]`.

    Returns:
      `[batch]`, not negative.
    """
    return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(attacked), jax.nn.log_softmax(clean))


def check_robust_term(radius: float, beta: float, label_smoothing: float) -> None:
    """Refuse what no robust objective takes."""
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    check_smoothing(label_smoothing)
