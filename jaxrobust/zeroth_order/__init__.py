"""Zeroth-order estimators: gradients from function values alone."""

from jaxrobust.zeroth_order.activation import activation as activation
from jaxrobust.zeroth_order.black_box import BlackBox as BlackBox
from jaxrobust.zeroth_order.black_box import Failure as Failure
from jaxrobust.zeroth_order.black_box import black_box as black_box
from jaxrobust.zeroth_order.coordinate import coordinate as coordinate
from jaxrobust.zeroth_order.differentiable import differentiable as differentiable
from jaxrobust.zeroth_order.forward_gradient import forward_gradient as forward_gradient
from jaxrobust.zeroth_order.grasp import grasp as grasp
from jaxrobust.zeroth_order.grasp import zero_order_grasp as zero_order_grasp
from jaxrobust.zeroth_order.low_rank import LowRankState as LowRankState
from jaxrobust.zeroth_order.low_rank import low_rank as low_rank
from jaxrobust.zeroth_order.random_directions import random_directions as random_directions
from jaxrobust.zeroth_order.seed_replay import Replay as Replay
from jaxrobust.zeroth_order.seed_replay import replay as replay
from jaxrobust.zeroth_order.seed_replay import seed_replay as seed_replay
from jaxrobust.zeroth_order.selection import Selected as Selected
from jaxrobust.zeroth_order.selection import Selection as Selection
from jaxrobust.zeroth_order.selection import importance_selection as importance_selection
from jaxrobust.zeroth_order.selection import layerwise_densities as layerwise_densities
from jaxrobust.zeroth_order.selection import uniform_selection as uniform_selection
from jaxrobust.zeroth_order.transform import TransformState as TransformState
from jaxrobust.zeroth_order.transform import as_transform as as_transform
