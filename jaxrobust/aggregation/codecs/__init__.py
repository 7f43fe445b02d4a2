"""Codecs: how a vector travels."""

from jaxrobust.aggregation.codecs.bfloat16 import bfloat16 as bfloat16
from jaxrobust.aggregation.codecs.error_feedback import error_feedback as error_feedback
from jaxrobust.aggregation.codecs.float32 import float32 as float32
from jaxrobust.aggregation.codecs.nuqsgd import nuqsgd as nuqsgd
from jaxrobust.aggregation.codecs.qsgd import qsgd as qsgd
from jaxrobust.aggregation.codecs.qsgd import qsgd_inf as qsgd_inf
from jaxrobust.aggregation.codecs.quantization import Quantized as Quantized
from jaxrobust.aggregation.codecs.sign import sign as sign
from jaxrobust.aggregation.codecs.stateless import stateless as stateless
from jaxrobust.aggregation.codecs.ternary import ternary as ternary
from jaxrobust.aggregation.codecs.variance import rounding_variance as rounding_variance
from jaxrobust.aggregation.codecs.variance import variance_bound as variance_bound
