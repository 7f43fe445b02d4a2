"""Implicit bias: optimizers in a chosen norm, and the solutions they prefer."""

from jaxrobust.implicit_bias.linear_models import deep_linear as deep_linear
from jaxrobust.implicit_bias.linear_models import linear as linear
from jaxrobust.implicit_bias.linear_models import linear_convolutional as linear_convolutional
from jaxrobust.implicit_bias.linear_models import linear_map as linear_map
from jaxrobust.implicit_bias.margin import margin as margin
from jaxrobust.implicit_bias.margin import robust_radius as robust_radius
from jaxrobust.implicit_bias.max_margin import MaxMargin as MaxMargin
from jaxrobust.implicit_bias.max_margin import max_margin as max_margin
from jaxrobust.implicit_bias.over_parametrization import Method as Method
from jaxrobust.implicit_bias.over_parametrization import Problems as Problems
from jaxrobust.implicit_bias.over_parametrization import exponential as exponential
from jaxrobust.implicit_bias.over_parametrization import log_exponential as log_exponential
from jaxrobust.implicit_bias.over_parametrization import logistic as logistic
from jaxrobust.implicit_bias.over_parametrization import margins as margins
from jaxrobust.implicit_bias.over_parametrization import normalized_methods as normalized_methods
from jaxrobust.implicit_bias.over_parametrization import plain_methods as plain_methods
from jaxrobust.implicit_bias.over_parametrization import separable as separable
from jaxrobust.implicit_bias.over_parametrization import solve as solve
from jaxrobust.implicit_bias.proximal_gradient import ProximalState as ProximalState
from jaxrobust.implicit_bias.proximal_gradient import proximal as proximal
from jaxrobust.implicit_bias.proximal_gradient import proximal_gradient as proximal_gradient
from jaxrobust.implicit_bias.steepest_descent import steepest_descent as steepest_descent
