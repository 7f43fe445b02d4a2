r"""The fast gradient sign method, in any norm: one step of projected gradient ascent.

.. math:: x' = P\left(x + \eta \arg\max_{\|d\| \le 1} \langle d, \nabla \ell(x) \rangle\right)
"""

from dataclasses import replace

from jaxrobust.attacks import losses
from jaxrobust.attacks.pgd import Bounded, pgd
from jaxrobust.attacks.starts import Start, no_start
from jaxrobust.geometry import Geometry
from jaxrobust.typing import Loss


def fgsm(
    geometry: Geometry,
    radius: float,
    *,
    step_size: float | None = None,
    start: Start = no_start,
    loss: Loss = losses.cross_entropy,
) -> Bounded:
    """Build a one-step attack.

    Args:
      geometry: the norm; in l-infinity the step is the gradient's sign.
      radius: largest norm of a perturbation, in units of the images' range [0, 1].
      step_size: norm of the step; the radius by default. Fast adversarial training takes 1.25 * radius.
      start: where it begins; the clean image by default. Fast adversarial training takes `uniform_start`.
      loss: what is maximized, `(logits, labels) -> [batch]`.

    Returns:
      `(key or keys [batch], logits_fn, images [batch, ...], labels) -> images`, each in [0, 1] and within the radius.

    Raises:
      ValueError: for a negative radius or a step that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import attacks, geometry
      >>> attack = attacks.fgsm(geometry.linf(), 0.25)
      >>> logits = lambda images: jnp.concatenate([images, -images], 1)
      >>> attack(jax.random.key(0), logits, jnp.array([[0.5]]), jnp.array([1])).round(6).tolist()
      [[0.75]]

    Reference: Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples",
    https://arxiv.org/abs/1412.6572, 2015; Wong, Rice and Kolter, "Fast is better than free",
    https://arxiv.org/abs/2001.03994, 2020.
    """
    step_size = radius if step_size is None else step_size
    return replace(pgd(geometry, radius, steps=1, step_size=step_size, loss=loss, start=start), name="fgsm")
