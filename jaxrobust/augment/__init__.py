"""Augmentations: changes of the inputs whose bounds are trained with the network."""

from jaxrobust.augment.identity import identity as identity
from jaxrobust.augment.noise_range import noise_range as noise_range
