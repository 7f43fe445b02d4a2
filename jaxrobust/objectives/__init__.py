"""Objectives: what a training step minimizes, one loss per example."""

from jaxrobust.objectives import presets as presets
from jaxrobust.objectives.adversarial import adversarial as adversarial
from jaxrobust.objectives.awp import awp as awp
from jaxrobust.objectives.cross_entropy import cross_entropy as cross_entropy
from jaxrobust.objectives.denoised_smoothing import denoised_smoothing as denoised_smoothing
from jaxrobust.objectives.foar import foar as foar
from jaxrobust.objectives.mart import mart as mart
from jaxrobust.objectives.soar import soar as soar
from jaxrobust.objectives.solver_in_the_loop import solver_in_the_loop as solver_in_the_loop
from jaxrobust.objectives.trades import trades as trades
