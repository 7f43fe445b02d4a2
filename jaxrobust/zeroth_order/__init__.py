"""Zeroth-order estimators: gradients from function values alone."""

from jaxrobust.zeroth_order.coordinate import coordinate as coordinate
from jaxrobust.zeroth_order.random_directions import random_directions as random_directions
from jaxrobust.zeroth_order.transform import TransformState as TransformState
from jaxrobust.zeroth_order.transform import as_transform as as_transform
