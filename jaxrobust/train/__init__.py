"""Training: one experiment of seven slots, its step, its loop and its run directory."""

from jaxrobust.train.configuration import Configuration as Configuration
from jaxrobust.train.configuration import configure as configure
from jaxrobust.train.evaluate import evaluate_run as evaluate_run
from jaxrobust.train.experiment import Experiment as Experiment
from jaxrobust.train.experiment import moving_average as moving_average
from jaxrobust.train.fit import Diverged as Diverged
from jaxrobust.train.fit import Fitted as Fitted
from jaxrobust.train.fit import fit as fit
from jaxrobust.train.step import Trainer as Trainer
from jaxrobust.train.step import TrainState as TrainState
from jaxrobust.train.step import keys_of_run as keys_of_run
from jaxrobust.train.step import make_mesh as make_mesh
from jaxrobust.train.step import prepare_training as prepare_training
