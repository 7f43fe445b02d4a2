"""Solvers of differential equations: what a corrector is trained to correct."""

from jaxrobust.solvers.exponential import exponential_step as exponential_step
from jaxrobust.solvers.kolmogorov import kolmogorov as kolmogorov
from jaxrobust.solvers.kuramoto_sivashinsky import kuramoto_sivashinsky as kuramoto_sivashinsky
from jaxrobust.solvers.periodic import Periodic as Periodic
from jaxrobust.solvers.periodic import resampled as resampled
from jaxrobust.solvers.rollout_error import corrected_steps as corrected_steps
from jaxrobust.solvers.rollout_error import rollout_error as rollout_error
from jaxrobust.solvers.trajectories import random_fields as random_fields
from jaxrobust.solvers.trajectories import trajectories as trajectories
