"""Aggregation: how workers' gradients become one, what travels (codec) times how vectors are joined (rule)."""

from jaxrobust.aggregation import codecs as codecs
from jaxrobust.aggregation import rules as rules
from jaxrobust.aggregation.all_reduce import ReduceState as ReduceState
from jaxrobust.aggregation.all_reduce import Reduction as Reduction
from jaxrobust.aggregation.all_reduce import aggregate as aggregate
from jaxrobust.aggregation.all_reduce import all_reduce as all_reduce
from jaxrobust.aggregation.all_reduce import exact_mean as exact_mean
from jaxrobust.aggregation.hostile import hostile as hostile
from jaxrobust.aggregation.hostile import sign_flip as sign_flip
from jaxrobust.aggregation.packing import pack as pack
from jaxrobust.aggregation.packing import unpack as unpack
from jaxrobust.aggregation.packing import wire_bits as wire_bits
