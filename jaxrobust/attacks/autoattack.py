"""AutoAttack: the suites of attacks without parameters to tune that robust accuracies are reported under.

    version     attacks, in order                                          settings
    ---------   --------------------------------------------------------   -------------------------------------------
    standard    apgd_ce, apgd_t, fab_t, square                             100 steps, 1 start, 9 targets; l1: 5 starts,
                                                                           5 targets for apgd_t, larger radii first
    plus        apgd_ce, apgd_dlr, fab, square, apgd_t, fab_t              5 starts, 9 targets
    rand        apgd_ce, apgd_dlr                                          gradients are means of 20 draws

All have 100 steps, Square 5,000 questions. A suite is a dictionary of attacks: take some out, or put your own in.
"""

from typing import Literal

from jaxrobust.attacks import losses
from jaxrobust.attacks.apgd import apgd
from jaxrobust.attacks.fab import fab
from jaxrobust.attacks.search import Search
from jaxrobust.attacks.square import square
from jaxrobust.geometry import Geometry

Version = Literal["standard", "plus", "rand"]
NORMS = ("linf", "l2", "l1")
STEPS, QUERIES, STARTS, TARGETS, TARGETS_L1, DRAWS = 100, 5000, 5, 9, 5, 20


def autoattack(geometry: Geometry, radius: float, version: Version = "standard") -> dict[str, Search]:
    """Build a suite.

    Args:
      geometry: `linf()`, `l2()` or `l1()`.
      radius: largest norm of a perturbation, in units of the images' range [0, 1]; 8 / 255, 0.5 and 12 are the usual
        ones of CIFAR-10.
      version: "standard"; "plus", more starts, costs several times as much; "rand" for a model that draws.

    Returns:
      Name -> attack, for `attacks.evaluate`.

    Raises:
      ValueError: for another norm, a radius that is not positive, or another version.

    Example:
      >>> from jaxrobust import attacks, geometry
      >>> list(attacks.autoattack(geometry.linf(), 8 / 255))
      ['apgd_ce', 'apgd_t', 'fab_t', 'square']

    Reference: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks", https://arxiv.org/abs/2003.01690, 2020 (section 5); "Mind the Box: l1-APGD for Sparse Adversarial Attacks
    on Image Classifiers", https://arxiv.org/abs/2103.01208, 2021 (l1).
    """
    if geometry.name not in NORMS:
        raise ValueError(f"geometry must be one of {', '.join(NORMS)}, got {geometry.name}: attacks.apgd takes any")
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    l1 = geometry.name == "l1"
    if version == "standard":
        return {
            "apgd_ce": apgd(geometry, radius, steps=STEPS, restarts=STARTS if l1 else 1, larger_radius=l1),
            "apgd_t": apgd(geometry, radius, steps=STEPS, targets=TARGETS_L1 if l1 else TARGETS, larger_radius=l1),
            "fab_t": fab(geometry, radius, steps=STEPS, targets=TARGETS),
            "square": square(geometry, radius, queries=QUERIES),
        }
    if version == "plus":
        return {
            "apgd_ce": apgd(geometry, radius, steps=STEPS, restarts=STARTS),
            "apgd_dlr": apgd(geometry, radius, steps=STEPS, loss=losses.dlr, restarts=STARTS),
            "fab": fab(geometry, radius, steps=STEPS, restarts=STARTS),
            "square": square(geometry, radius, queries=QUERIES),
            "apgd_t": apgd(geometry, radius, steps=STEPS, targets=TARGETS),
            "fab_t": fab(geometry, radius, steps=STEPS, targets=TARGETS),
        }
    if version == "rand":
        return {
            "apgd_ce": apgd(geometry, radius, steps=STEPS, draws=DRAWS),
            "apgd_dlr": apgd(geometry, radius, steps=STEPS, loss=losses.dlr, draws=DRAWS),
        }
    raise ValueError(f"version must be standard, plus or rand, got {version!r}")
