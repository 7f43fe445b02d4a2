r"""Auto-PGD: projected gradient ascent with momentum, whose step size follows from how it goes.

.. math::
    z_{t+1} &= P\left(x_t + \eta \arg\max_{\|d\| \le 1} \langle d, \nabla \ell(x_t) \rangle\right) \\
    x_{t+1} &= P\left(x_t + \alpha (z_{t+1} - x_t) + (1 - \alpha) (x_t - x_{t-1})\right)

with P onto the ball and [0, 1], and alpha = 0.75 after the first step. The step size eta starts at two radii. At
checkpoints, which come ever closer, it is halved and the search goes back to its best point, if the loss rose in at
most 0.75 of the steps since the last one, or if neither the step size nor the best loss has changed since then.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.attacks import losses
from jaxrobust.attacks.apgd_l1 import sparse_ascent
from jaxrobust.attacks.search import Answer, Search, SearchState, misclassified
from jaxrobust.attacks.settings import check_ball, check_counts
from jaxrobust.attacks.starts import Start, gaussian_start, no_start
from jaxrobust.geometry import Geometry, within
from jaxrobust.geometry.norm import divided
from jaxrobust.typing import Array, Key, Loss

MOMENTUM, RHO = 0.75, 0.75
FIRST_INTERVAL, SHORTEST_INTERVAL, SHORTER_BY = 0.22, 0.06, 0.03
SMALL = 1e-12


def apgd(
    geometry: Geometry,
    radius: float,
    *,
    steps: int = 100,
    loss: Loss = losses.cross_entropy,
    restarts: int = 1,
    targets: int = 0,
    start: Start | Array | None = None,
    draws: int = 1,
    larger_radius: bool = False,
) -> Search:
    """Build the attack.

    Args:
      geometry: the norm; in `l1()` steps are sparse and the projection is exact on the ball within the box.
      radius: largest norm of a perturbation, in units of the images' range [0, 1]; 0 leaves images as they are.
      steps: gradient steps of a run; it asks once more, at its start. The papers take 100.
      loss: what is maximized, `(logits, labels) -> [batch]`; without targets.
      restarts: runs from random starts, until one succeeds; with targets, as many for each.
      targets: how many wrong classes are attacked, the one of the largest clean logit first, by `targeted_dlr`; all
        wrong classes where there are fewer. 0 attacks the label.
      start: `(key, geometry, image, radius) -> delta`, or `[batch, ...]` images to begin at. By default a random
        direction as long as the radius, and in l1 Gaussian noise, projected.
      draws: gradients of a `Randomized` classifier that are averaged for a step.
      larger_radius: in l1, begin with 30 percent of the steps in the ball of three radii and as many in that of two.

    Returns:
      `(key or keys [batch], logits_fn, images [batch, ...], labels [batch]) -> images`, each in [0, 1] and within the
      radius: the last misclassified one of the run that succeeded, else the one of the first run's highest
      loss. An image that is misclassified itself comes back as it is.

    Raises:
      ValueError: for a number out of its range, for restarts that would all be equal, for a loss beside targets, or for
        a larger radius in another norm or in fewer than five steps.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import attacks, geometry
      >>> attack = attacks.apgd(geometry.linf(), 0.25, steps=5)
      >>> logits = lambda images: jnp.stack([images.sum(1), 1 - images.sum(1)], 1)
      >>> attack(jax.random.key(0), logits, jnp.full((1, 2), 0.5), jnp.array([0])).round(3).tolist()
      [[0.25, 0.25]]

    Reference: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks", https://arxiv.org/abs/2003.01690, 2020 (algorithm 1, section 4); "Mind the Box: l1-APGD for Sparse
    Adversarial Attacks on Image Classifiers", https://arxiv.org/abs/2103.01208, 2021 (l1).
    """
    check_ball(geometry, radius)
    sparse = geometry.exponent == 1 and geometry.transform is None
    _check(geometry, steps, loss, restarts, targets, start, draws, larger_radius, sparse)
    if sparse:
        begin, tell = sparse_ascent(radius, steps, larger_radius)
        first: Start = gaussian_start(1.0)
    else:
        begin, tell = _momentum_ascent(geometry, radius, steps)
        first = _sphere_start
    # Sparse steps count the changed pixels at a start that someone chose, and take their own for full.
    full = start is None and not larger_radius
    first = start if callable(start) else first
    widest = 3 * radius if larger_radius else radius

    def init(
        key: Key, image: Array, label: Array, logits: Array, run: Array, given: Array | None = None
    ) -> SearchState:
        del label
        begun = image + first(key, geometry, image, widest) if given is None else given
        target = jnp.int32(0)
        if targets:
            ranked = jax.lax.top_k(logits, _clamped(targets, logits.shape[-1]) + 1)[1]
            target = ranked[run // restarts + 1].astype(jnp.int32)
        return begin(image, begun, logits.dtype, target, full and given is None)

    def value(memory: Any, logits: Array, label: Array) -> Array:
        logits, label = logits[None], label[None]
        found = losses.targeted_dlr(logits, label, memory.target[None]) if targets else loss(logits, label)
        return found[0]

    return Search(
        name="apgd_t" if targets else "apgd",
        geometry=geometry,
        radius=radius,
        init=init,
        tell=tell,
        loss=value,
        runs=lambda classes: restarts * (_clamped(targets, classes) if targets else 1),
        draws=draws,
        start=None if start is None or callable(start) else start,
    )


class Memory(NamedTuple):
    """What a run keeps.

    Attributes:
      target: int32, the class to reach.
      count: int32, answers so far.
      best: the point of the highest loss; slope and value: gradient and loss there.
      previous: the point before.
      last: the loss of the last step; 0 before the first.
      milestone: the highest loss at the last checkpoint.
      rises: int32, steps since the last checkpoint in which the loss rose.
      step_size: scalar.
      reduced: bool, whether the step was halved at the last checkpoint.
    """

    target: Array
    count: Array
    best: Array
    slope: Array
    value: Array
    previous: Array
    last: Array
    milestone: Array
    rises: Array
    step_size: Array
    reduced: Array


def _momentum_ascent(
    geometry: Geometry, radius: float, steps: int
) -> tuple[Callable[..., SearchState], Callable[..., SearchState]]:
    geometry = _as_published(geometry)
    intervals = _intervals(steps)
    few_rises = np.floor(RHO * intervals).astype(np.int32)

    def begin(image: Array, begun: Array, dtype: Any, target: Array, full: bool) -> SearchState:
        del full
        point, lowest, none = within(geometry, image, begun, radius), jnp.asarray(-jnp.inf, dtype), jnp.int32(0)
        # The first step counts as a rise if its loss is positive, and the first checkpoint knows no plateau: both as
        # the authors' code has it.
        memory = Memory(
            target=target,
            count=none,
            best=point,
            slope=jnp.zeros_like(point),
            value=lowest,
            previous=point,
            last=jnp.zeros_like(lowest),
            milestone=lowest,
            rises=none,
            step_size=jnp.asarray(2 * radius, image.dtype),
            reduced=jnp.bool_(True),
        )
        return SearchState(point, point, jnp.bool_(False), jnp.bool_(False), memory)

    def tell(state: SearchState, image: Array, label: Array, answer: Answer) -> SearchState:
        memory, point = state.memory, state.point
        starting = memory.count == 0
        value = answer.value.astype(memory.value.dtype)
        slope = answer.gradient
        wrong = misclassified(answer.logits, label)

        better = starting | (value > memory.value) | jnp.isnan(memory.value)
        best = jnp.where(better, point, memory.best)
        best_slope = jnp.where(better, slope, memory.slope)
        best_value = jnp.where(better, value, memory.value)

        rises = memory.rises + (~starting & (value > memory.last)).astype(jnp.int32)
        checkpoint = jnp.asarray(intervals)[memory.count] > 0
        plateau = ~memory.reduced & (memory.milestone >= best_value)
        reduce = checkpoint & ((rises <= jnp.asarray(few_rises)[memory.count]) | plateau)
        step_size = jnp.where(reduce, memory.step_size / 2, memory.step_size)
        current, slope = jnp.where(reduce, best, point), jnp.where(reduce, best_slope, slope)

        ahead = within(geometry, image, current + step_size * geometry.steepest(slope), radius)
        share = jnp.where(starting, 1, jnp.asarray(MOMENTUM, point.dtype))
        moved = current + share * (ahead - current) + (1 - share) * (current - memory.previous)
        broken = state.broken | wrong
        return SearchState(
            point=within(geometry, image, moved, radius),
            found=jnp.where(wrong, point, jnp.where(broken, state.found, best)),
            broken=broken,
            done=memory.count >= steps,
            memory=Memory(
                target=memory.target,
                count=memory.count + 1,
                best=best,
                slope=best_slope,
                value=best_value,
                previous=current,
                last=jnp.where(starting, memory.last, value),
                milestone=jnp.where(starting | checkpoint, best_value, memory.milestone),
                rises=jnp.where(checkpoint, 0, rises),
                step_size=step_size,
                reduced=jnp.where(checkpoint, reduce, memory.reduced),
            ),
        )

    return begin, tell


def _intervals(steps: int) -> np.ndarray:
    """`[steps + 1]`: how many steps the interval has that ends after each answer, 0 within it; entry 0 is the start."""
    length, shortest, less = (max(int(share * steps), 1) for share in (FIRST_INTERVAL, SHORTEST_INTERVAL, SHORTER_BY))
    found, end = np.zeros(steps + 1, np.int32), length
    while end <= steps:
        found[end] = length
        length = max(length - less, shortest)
        end += length
    return found


def _as_published(geometry: Geometry) -> Geometry:
    """In l2, lengths that are divided by are enlarged by a small number, as in the authors' code: traces agree to
    rounding, and a gradient that is nothing but rounding is not blown up to a whole step."""
    if geometry.exponent != 2 or geometry.transform is not None:
        return geometry

    def length(delta: Array) -> Array:
        # Of a difference of images: it neither overflows nor vanishes, and needs no scaling.
        return jnp.sqrt(jnp.sum(delta * delta))

    def project(delta: Array, radius: Array | float) -> Array:
        return delta * (jnp.minimum(length(delta), radius) / (length(delta) + SMALL))

    return geometry._replace(norm=length, steepest=lambda g: g / (geometry.norm(g) + SMALL), project=project)


def _sphere_start(key: Key, geometry: Geometry, image: Array, radius: float) -> Array:
    drawn = geometry.sample(key, image.shape).astype(image.dtype)
    return radius * divided(drawn, geometry.norm(drawn))


def _clamped(targets: int, classes: int) -> int:
    return min(targets, classes - 1)


def _check(
    geometry: Geometry,
    steps: int,
    loss: Loss,
    restarts: int,
    targets: int,
    start: Start | Array | None,
    draws: int,
    larger_radius: bool,
    sparse: bool,
) -> None:
    check_counts(steps=steps, restarts=restarts, draws=draws)
    check_counts(0, targets=targets)
    if restarts > 1 and (start is no_start or not (start is None or callable(start))):
        raise ValueError(f"restarts must be 1 without a random start, got {restarts}: they would all be equal")
    if targets and loss is not losses.cross_entropy:
        raise ValueError(f"loss must be left out with targets, got {targets} targets: each has its targeted_dlr")
    if larger_radius and not sparse:
        raise ValueError(f"larger_radius needs geometry.l1(), got {geometry.name}")
    if larger_radius and steps < 5:
        raise ValueError(f"larger_radius needs at least 5 steps for its three balls, got {steps}")
