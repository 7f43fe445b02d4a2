"""Attacks on a classifier, and the accuracy that is left."""

from jaxrobust.attacks import losses as losses
from jaxrobust.attacks.accuracy import accuracy as accuracy
from jaxrobust.attacks.apgd import apgd as apgd
from jaxrobust.attacks.autoattack import autoattack as autoattack
from jaxrobust.attacks.evaluate import Robustness as Robustness
from jaxrobust.attacks.evaluate import Standing as Standing
from jaxrobust.attacks.evaluate import evaluate as evaluate
from jaxrobust.attacks.fab import fab as fab
from jaxrobust.attacks.fgsm import fgsm as fgsm
from jaxrobust.attacks.pgd import pgd as pgd
from jaxrobust.attacks.search import Randomized as Randomized
from jaxrobust.attacks.search import Search as Search
from jaxrobust.attacks.spectrum import energy_share as energy_share
from jaxrobust.attacks.square import square as square
from jaxrobust.attacks.starts import gaussian_start as gaussian_start
from jaxrobust.attacks.starts import no_start as no_start
from jaxrobust.attacks.starts import uniform_start as uniform_start
from jaxrobust.attacks.transfer import transfer as transfer
from jaxrobust.attacks.worst_case import in_order as in_order
from jaxrobust.attacks.worst_case import worst_case as worst_case
