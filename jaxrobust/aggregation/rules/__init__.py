"""Rules: how n vectors become one."""

from jaxrobust.aggregation.rules.distances import distances as distances
from jaxrobust.aggregation.rules.distances import gram as gram
from jaxrobust.aggregation.rules.krum import krum as krum
from jaxrobust.aggregation.rules.krum import krum_byzfl as krum_byzfl
from jaxrobust.aggregation.rules.krum import krum_mixtailor as krum_mixtailor
from jaxrobust.aggregation.rules.krum import krum_noniid as krum_noniid
from jaxrobust.aggregation.rules.mean import mean as mean
from jaxrobust.aggregation.rules.median import median as median
from jaxrobust.aggregation.rules.multi_krum import multi_krum as multi_krum
from jaxrobust.aggregation.rules.multi_krum import multi_krum_byzfl as multi_krum_byzfl
from jaxrobust.aggregation.rules.stateless import stateless as stateless
from jaxrobust.aggregation.rules.trimmed_mean import trimmed_mean as trimmed_mean
