"""One experiment: a model, seven slots, and how long to train.

Every slot takes a pure function (`jaxrobust.typing`), so that what fills one composes with what fills the others.
An `Experiment` is a value: it opens no file, holds no array that trains, and can be built again from its configuration.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax.numpy as jnp
import optax

from jaxrobust.aggregation import exact_mean
from jaxrobust.attacks import accuracy
from jaxrobust.augment import identity
from jaxrobust.objectives import cross_entropy
from jaxrobust.typing import (
    Array,
    Augmentation,
    Estimator,
    Evaluation,
    Model,
    Objective,
    Params,
    Source,
    Stream,
    backprop,
)

DATA = "data"
"""Name of the mesh axis over which a batch is split."""
WORKER = "worker"
"""Name of the inner axis where one device plays several workers."""
MEMBER = "member"
"""Name of the inner mesh axis where several devices form one worker."""

Average = Callable[[Array, Params, Params], Params]
"""`(step, average, params) -> average`."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A model and the seven slots, with the schedule of a run.

    Attributes:
      model: the network.
      data: slot 1, the training examples: a `Source` on the device or a `Stream` from the host.
      test: held-out examples in order (`shuffle=False`), for `evaluate`.
      augment: slot 2, a change of the inputs whose bounds are trained.
      objective: slot 3, what is minimized.
      gradient: slot 4, how its gradient is found.
      reduce: slot 5, how the workers' gradients become one. Built over the axis `"data"`, or over
        `("data", "worker")` with several workers per device, or over `"data"` with `inner_axis="member"` where several
        devices form one worker. None for the exact mean.
      optimizer: slot 6, any optax transformation. It sees the tree `{"augment": ..., "model": ...}`.
      evaluate: slot 7, run on `test` every `evaluate_every` steps.
      final: what is run on `test` after the last step; None repeats `evaluate`.
      steps: optimizer updates.
      batch_size: examples of one update, over all devices.
      seed: the seed of parameters, data order and attacks.
      accumulation: parts in which a worker computes its share of the batch, one after another; the gradient is
        reduced once a step.
      workers_per_device: workers that one device plays, each with its own gradient and its own reduction memory.
      devices_per_worker: neighboring devices that form one worker: with fast links among them, as those of one host,
        they average exactly, and what travels from worker to worker is packed.
      average: moving average of the parameters that is evaluated in their stead; None for none.
      evaluate_every: steps between evaluations; 0 for none before the last step.
      refresh_every: steps between looks of the sampler at the model (`Source.refresh`); 0 for none.
      log_every: steps between rows of `metrics.jsonl`.
      checkpoint_every: steps between checkpoints; 0 for one after the last step alone.

    Raises:
      ValueError: for a number out of its range, naming it.
    """

    model: Model
    data: Source | Stream
    test: Source | None = None
    augment: Augmentation = field(default_factory=identity)
    objective: Objective = field(default_factory=cross_entropy)
    gradient: Estimator = field(default_factory=backprop)
    reduce: optax.GradientTransformation | None = None
    optimizer: optax.GradientTransformation = field(default_factory=lambda: optax.sgd(0.1))
    evaluate: Evaluation = field(default_factory=accuracy)
    final: Evaluation | None = None
    steps: int = 1000
    batch_size: int = 128
    seed: int = 0
    accumulation: int = 1
    workers_per_device: int = 1
    devices_per_worker: int = 1
    average: Average | None = None
    evaluate_every: int = 0
    refresh_every: int = 0
    log_every: int = 10
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "workers_per_device", "devices_per_worker", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.workers_per_device > 1 and self.devices_per_worker > 1:
            raise ValueError(
                f"devices_per_worker must be 1 where a device plays {self.workers_per_device} workers, got "
                f"{self.devices_per_worker}"
            )
        for name in ("evaluate_every", "refresh_every", "checkpoint_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.refresh_every and isinstance(self.data, Stream):
            raise ValueError("refresh_every needs a Source on the device, got a Stream: set refresh_every=0")
        if self.objective.coupled and not is_mean(self.reduction):
            raise ValueError(
                "a coupled objective needs the mean, got another rule: leave reduce=None, or take an objective whose "
                "losses are separate"
            )

    @property
    def axes(self) -> str | tuple[str, str]:
        """The mapped axes that a step runs over, the outermost first."""
        if self.devices_per_worker > 1:
            return (DATA, MEMBER)
        return DATA if self.workers_per_device == 1 else (DATA, WORKER)

    @property
    def reduction(self) -> optax.GradientTransformation:
        """What fills the reduce slot: the exact mean over all workers where nothing was given."""
        return exact_mean(self.axes) if self.reduce is None else self.reduce


def is_mean(reduce: optax.GradientTransformation) -> bool:
    """Whether a reduction's rule is the mean, so that statistics shared by all workers are meaningful."""
    return getattr(reduce, "averages", False)


def moving_average(decay: float = 0.995, warmup: int = 0) -> Average:
    r"""Exponential moving average of the parameters.

    .. math:: a_{t+1} = \tau_t a_t + (1 - \tau_t) \theta_t, \quad \tau_t = \min(\tau, (1 + t) / (10 + t))

    with t counted after the warm-up, during which the average is the parameters themselves.

    Args:
      decay: tau in [0, 1). 0.995 in the recipe of Bartoldson et al.
      warmup: steps; 2.5 % of the training in that recipe.

    Returns:
      `(step, average, params) -> average`.

    Raises:
      ValueError: for a decay outside [0, 1) or a negative warm-up.

    Example:
      >>> import jax.numpy as jnp
      >>> average = moving_average(decay=0.9)
      >>> print(round(float(average(jnp.int32(0), jnp.float32(1.0), jnp.float32(2.0))), 3))
      1.9

    Reference: Bartoldson, Diffenderfer, Parasyris and Kailkhura, "Adversarial Robustness Limits via Scaling-Law and
    Human-Alignment Studies", https://arxiv.org/abs/2404.09349, 2024.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, got {warmup}")

    def update(step: Array, average: Params, params: Params) -> Params:
        since = (step - warmup).astype(jnp.float32)
        kept = jnp.where(since < 0, 0.0, jnp.minimum(decay, (1 + since) / (10 + since)))
        return optax.incremental_update(params, average, 1 - kept)

    return update
