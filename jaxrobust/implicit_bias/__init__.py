"""Implicit bias: optimizers in a chosen norm, and the solutions they prefer."""

from jaxrobust.implicit_bias.steepest_descent import steepest_descent as steepest_descent
