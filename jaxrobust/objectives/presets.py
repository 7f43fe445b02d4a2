"""Objectives with the settings that were published, under the name of the paper; radii in units of [0, 1]."""

from jaxrobust.attacks.fgsm import fgsm
from jaxrobust.attacks.pgd import pgd
from jaxrobust.attacks.starts import uniform_start
from jaxrobust.geometry import linf
from jaxrobust.objectives.adversarial import adversarial
from jaxrobust.objectives.mart import mart
from jaxrobust.objectives.trades import trades
from jaxrobust.typing import Objective


def madry2018_cifar10() -> Objective:
    """PGD-10 of step 2/255 from a uniform start at 8/255.

    Reference: Madry et al., https://arxiv.org/abs/1706.06083, 2018, in the setting of Rice, Wong and Kolter,
    https://arxiv.org/abs/2002.11569, 2020.
    """
    return adversarial(pgd(linf(), 8 / 255, steps=10, step_size=2 / 255))


def zhang2019_cifar10() -> Objective:
    """TRADES with radius 0.031, ten steps of 0.007 and beta 6.

    Reference: Zhang et al., https://arxiv.org/abs/1901.08573, 2019.
    """
    return trades(linf(), 0.031, beta=6.0, steps=10, step_size=0.007)


def wang2020_cifar10() -> Objective:
    """MART with radius 0.031, ten steps of 0.007 and beta 5.

    Reference: Wang et al., https://openreview.net/forum?id=rklOg6EFwS, 2020.
    """
    return mart(linf(), 0.031, beta=5.0, steps=10, step_size=0.007)


def wong2020_cifar10() -> Objective:
    """Fast adversarial training: one step of 10/255 from a uniform start at 8/255.

    Reference: Wong, Rice and Kolter, https://arxiv.org/abs/2001.03994, 2020.
    """
    return adversarial(fgsm(linf(), 8 / 255, step_size=10 / 255, start=uniform_start))


def wang2023_cifar10() -> Objective:
    """TRADES with beta 5, PGD-10 of step 2/255 from a uniform start at 8/255, label smoothing 0.1.

    Reference: Wang, Pang, Du, Lin, Liu and Yan, "Better Diffusion Models Further Improve Adversarial Training",
    https://arxiv.org/abs/2302.04638, 2023.
    """
    return trades(linf(), 8 / 255, beta=5.0, steps=10, step_size=2 / 255, start=uniform_start, label_smoothing=0.1)


def bartoldson2024_cifar10() -> Objective:
    """As Wang et al. 2023, with the attack on the batch's own statistics.

    Reference: Bartoldson, Diffenderfer, Parasyris and Kailkhura, https://arxiv.org/abs/2404.09349, 2024.
    """
    return trades(
        linf(),
        8 / 255,
        beta=5.0,
        steps=10,
        step_size=2 / 255,
        start=uniform_start,
        label_smoothing=0.1,
        attack_in_training_mode=True,
    )
