"""Sampling: which examples come, and with which weights."""

from jaxrobust.sampling.divided import by_label as by_label
from jaxrobust.sampling.divided import divided as divided
from jaxrobust.sampling.stratified import Examples as Examples
from jaxrobust.sampling.stratified import Reassign as Reassign
from jaxrobust.sampling.stratified import StratifiedState as StratifiedState
from jaxrobust.sampling.stratified import loss_quantiles as loss_quantiles
from jaxrobust.sampling.stratified import stratified as stratified
