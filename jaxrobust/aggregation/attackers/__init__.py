"""Attackers: what faulty workers send in place of their gradients; `hostile` puts one into any reduction."""

from jaxrobust.aggregation.attackers import directions as directions
from jaxrobust.aggregation.attackers import harms as harms
from jaxrobust.aggregation.attackers.attacker import Attacker as Attacker
from jaxrobust.aggregation.attackers.attacker import colluding as colluding
from jaxrobust.aggregation.attackers.bit_flip import bit_flip as bit_flip
from jaxrobust.aggregation.attackers.constant import constant as constant
from jaxrobust.aggregation.attackers.directions import Direction as Direction
from jaxrobust.aggregation.attackers.fang_krum import fang_krum as fang_krum
from jaxrobust.aggregation.attackers.fang_trimmed_mean import fang_trimmed_mean as fang_trimmed_mean
from jaxrobust.aggregation.attackers.gaussian import gaussian as gaussian
from jaxrobust.aggregation.attackers.harms import Harm as Harm
from jaxrobust.aggregation.attackers.inner_product_manipulation import epsilon_reverse as epsilon_reverse
from jaxrobust.aggregation.attackers.inner_product_manipulation import (
    inner_product_manipulation as inner_product_manipulation,
)
from jaxrobust.aggregation.attackers.label_flip import label_flip as label_flip
from jaxrobust.aggregation.attackers.little_is_enough import largest_deviation as largest_deviation
from jaxrobust.aggregation.attackers.little_is_enough import little_is_enough as little_is_enough
from jaxrobust.aggregation.attackers.mimic import mimic as mimic
from jaxrobust.aggregation.attackers.min_max import min_max as min_max
from jaxrobust.aggregation.attackers.min_sum import min_sum as min_sum
from jaxrobust.aggregation.attackers.not_finite import not_finite as not_finite
from jaxrobust.aggregation.attackers.omniscient import omniscient as omniscient
from jaxrobust.aggregation.attackers.optimized import optimized as optimized
from jaxrobust.aggregation.attackers.sign_flip import sign_flip as sign_flip
