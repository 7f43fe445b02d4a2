"""Objectives: what a training step minimizes, one loss per example."""

from jaxrobust.objectives import presets as presets
from jaxrobust.objectives.adversarial import adversarial as adversarial
from jaxrobust.objectives.cross_entropy import cross_entropy as cross_entropy
from jaxrobust.objectives.mart import mart as mart
from jaxrobust.objectives.trades import trades as trades
