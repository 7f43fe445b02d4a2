"""Codecs: how a vector travels."""

from jaxrobust.aggregation.codecs.float32 import float32 as float32
from jaxrobust.aggregation.codecs.qsgd import qsgd as qsgd
from jaxrobust.aggregation.codecs.stateless import stateless as stateless
