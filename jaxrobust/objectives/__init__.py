"""Objectives: what a training step minimizes, one loss per example."""

from jaxrobust.objectives import presets as presets
from jaxrobust.objectives.adversarial import adversarial as adversarial
from jaxrobust.objectives.awp import awp as awp
from jaxrobust.objectives.cross_entropy import cross_entropy as cross_entropy
from jaxrobust.objectives.foar import foar as foar
from jaxrobust.objectives.mart import mart as mart
from jaxrobust.objectives.soar import soar as soar
from jaxrobust.objectives.trades import trades as trades
