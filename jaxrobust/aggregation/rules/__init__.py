"""Rules: how n vectors become one."""

from jaxrobust.aggregation.rules.mean import mean as mean
from jaxrobust.aggregation.rules.median import median as median
from jaxrobust.aggregation.rules.stateless import stateless as stateless
