"""Aggregation: how workers' gradients become one, what travels (codec) times how vectors are joined (rule)."""

from jaxrobust.aggregation import attackers as attackers
from jaxrobust.aggregation import codecs as codecs
from jaxrobust.aggregation import rules as rules
from jaxrobust.aggregation.aggregator import as_aggregator as as_aggregator
from jaxrobust.aggregation.all_reduce import aggregate as aggregate
from jaxrobust.aggregation.all_reduce import all_reduce as all_reduce
from jaxrobust.aggregation.all_reduce import columns_of as columns_of
from jaxrobust.aggregation.all_reduce import exact_mean as exact_mean
from jaxrobust.aggregation.hostile import hostile as hostile
from jaxrobust.aggregation.joined_value import joined_value as joined_value
from jaxrobust.aggregation.packing import pack as pack
from jaxrobust.aggregation.packing import packed_size as packed_size
from jaxrobust.aggregation.packing import unpack as unpack
from jaxrobust.aggregation.packing import wire_bits as wire_bits
from jaxrobust.aggregation.reduction import Own as Own
from jaxrobust.aggregation.reduction import ReduceState as ReduceState
from jaxrobust.aggregation.reduction import Reduction as Reduction
from jaxrobust.aggregation.reduction import Shared as Shared
from jaxrobust.aggregation.suspicion import Suspicion as Suspicion
from jaxrobust.aggregation.wire import Collective as Collective
from jaxrobust.aggregation.wire import collectives as collectives
