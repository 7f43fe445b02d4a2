"""Networks behind one small type, `Model`: image classifiers, and adapters for Linen, NNX and plain functions."""

from jaxrobust.models.boundary import CIFAR10_MEAN as CIFAR10_MEAN
from jaxrobust.models.boundary import CIFAR10_STD as CIFAR10_STD
from jaxrobust.models.denoiser import denoiser as denoiser
from jaxrobust.models.denoiser import dense_denoiser as dense_denoiser
from jaxrobust.models.function import function as function
from jaxrobust.models.linen import linen as linen
from jaxrobust.models.mlp import mlp as mlp
from jaxrobust.models.nnx import nnx as nnx
from jaxrobust.models.periodic_cnn import periodic_cnn as periodic_cnn
from jaxrobust.models.preact_resnet import preact_resnet18 as preact_resnet18
from jaxrobust.models.resnet import resnet8 as resnet8
from jaxrobust.models.resnet import resnet20 as resnet20
from jaxrobust.models.small_cnn import small_cnn as small_cnn
from jaxrobust.models.wide_resnet import wide_resnet as wide_resnet
from jaxrobust.typing import Model as Model
