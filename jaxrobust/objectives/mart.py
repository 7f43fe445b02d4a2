r"""MART: misclassification-aware adversarial training.

.. math:: -\log p_y(x') - \log(1 - \max_{k \ne y} p_k(x')) + \beta\, \mathrm{KL}(p(x) \| p(x')) (1 - p_y(x))

with x' the attacked image: examples that the model gets wrong without an attack weigh more in the divergence.
"""

import jax
import jax.numpy as jnp

from jaxrobust.attacks import losses as attack_losses
from jaxrobust.attacks.pgd import pgd
from jaxrobust.attacks.starts import Start, gaussian_start
from jaxrobust.geometry import Geometry
from jaxrobust.objectives.adversarial import attacked_model, perturbation
from jaxrobust.objectives.cross_entropy import hits
from jaxrobust.objectives.trades import check_robust_term, disagreement
from jaxrobust.typing import Array, Batch, Metrics, Model, Objective, Params, State

# The authors' guards against log(0) and against a weight of exactly 0.
BELOW_ONE, POSITIVE, WEIGHT = 1.0001, 1e-12, 1.0000001


def mart(
    geometry: Geometry,
    radius: float,
    *,
    beta: float = 5.0,
    steps: int = 10,
    step_size: float | None = None,
    start: Start | None = None,
    attack_in_training_mode: bool = False,
) -> Objective:
    """Build the MART objective.

    Args:
      geometry: the norm of the attack.
      radius: of the ball, in units of the images' range [0, 1], positive; 0.031 in the paper.
      beta: weight of the divergence, not negative; 5 in the authors' script (6 in the paper's code by default).
      steps: of the attack, which climbs the cross-entropy; 10.
      step_size: norm of one of its steps; 2.5 * radius / steps by default, 0.007 in the paper.
      start: where it begins; Gaussian noise of scale 0.001 by default, as in the authors' code.
      attack_in_training_mode: whether the attack sees the batch's own statistics (batch norm) and not the running ones.

    Returns:
      The objective, with the metrics "clean_accuracy", "adversarial_accuracy" and "kl" on the training batch.

    Raises:
      ValueError: for a number out of its range.

    Example:
      >>> from jaxrobust import geometry, objectives
      >>> objectives.mart(geometry.linf(), 0.031, step_size=0.007).coupled
      False

    Reference: Wang, Zou, Yi, Bailey, Ma and Gu, "Improving Adversarial Robustness Requires Revisiting Misclassified
    Examples", https://openreview.net/forum?id=rklOg6EFwS, 2020, equation 11.
    """
    check_robust_term(radius, beta, 0.0)
    attack = pgd(geometry, radius, steps=steps, step_size=step_size, start=gaussian_start() if start is None else start)

    def prepare(keys: Array, model: Model, params: Params, state: State, batch: Batch) -> Array:
        logits_fn = attacked_model(model, params, state, attack_in_training_mode)
        return perturbation(attack, keys, logits_fn, batch.inputs, batch.targets)

    def losses(
        delta: Array, keys: Array, model: Model, params: Params, state: State, batch: Batch
    ) -> tuple[Array, tuple[State, Metrics]]:
        del keys
        clean, state = model.apply(params, state, batch.inputs, train=True)
        attacked, state = model.apply(params, state, batch.inputs + delta, train=True)
        own = jax.nn.one_hot(batch.targets, clean.shape[-1], dtype=bool)
        before, after = jax.nn.softmax(clean), jax.nn.softmax(attacked)
        best_other = jnp.max(jnp.where(own, 0, after), axis=-1)
        boosted = attack_losses.cross_entropy(attacked, batch.targets) - jnp.log(BELOW_ONE - best_other + POSITIVE)
        divergence = disagreement(clean, attacked)
        doubt = WEIGHT - jnp.sum(jnp.where(own, before, 0), axis=-1)
        metrics = {
            "clean_accuracy": hits(clean, batch.targets),
            "adversarial_accuracy": hits(attacked, batch.targets),
            "kl": divergence,
        }
        return boosted + beta * divergence * doubt, (state, metrics)

    return Objective(prepare, losses)
