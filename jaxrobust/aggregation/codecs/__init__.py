"""Codecs: how a vector travels."""

from jaxrobust.aggregation.codecs.float32 import float32 as float32
from jaxrobust.aggregation.codecs.qsgd import qsgd as qsgd
from jaxrobust.aggregation.codecs.qsgd import qsgd_inf as qsgd_inf
from jaxrobust.aggregation.codecs.quantization import Quantized as Quantized
from jaxrobust.aggregation.codecs.stateless import stateless as stateless
