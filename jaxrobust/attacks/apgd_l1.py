r"""Auto-PGD in l1: steps along few coordinates, as many as the best point so far suggests.

.. math:: x_{t+1} = P\left(x_t + \eta \, \mathrm{sign}(g_S) / |S|\right)

with S the coordinates of the largest gradients and P exact on the ball within [0, 1]. After every 4 percent of the
steps, |S| becomes two thirds of the number of pixels that the best point changes. If that number fell by more than 5
percent since the last time, eta goes back to the radius and the search to its best point; else eta shrinks by 1.5, to a
tenth of the radius at the least.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.attacks.search import Answer, SearchState, misclassified
from jaxrobust.geometry import project_l1_box
from jaxrobust.typing import Array

INTERVAL, SHRINK, SMALLEST, KEPT = 0.04, 1.5, 0.1, 0.95


class SparseMemory(NamedTuple):
    """What a run keeps.

    Attributes:
      target: int32, the class to reach.
      count: int32, answers so far.
      best: the point of the highest loss in this ball; slope and value: gradient and loss there.
      changed: int32, how many pixels the best point changed at the last check.
      left_out: int32, how many coordinates a step leaves out.
      step_size: scalar.
    """

    target: Array
    count: Array
    best: Array
    slope: Array
    value: Array
    changed: Array
    left_out: Array
    step_size: Array


def sparse_ascent(
    radius: float, steps: int, larger_radius: bool
) -> tuple[Callable[..., SearchState], Callable[..., SearchState]]:
    """Build the search of `apgd` in l1.

    Args:
      radius: of the ball.
      steps: gradient steps, over all balls.
      larger_radius: whether to climb in the balls of three and of two radii first. Each ball begins at the best point
        of the one before; the last one's points alone count as found.

    Returns:
      `(image, begun, dtype of losses, target, full) -> SearchState`, where `full` takes every pixel of the start for
      changed, and `tell` of a `Search`.

    Reference: Croce and Hein, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers",
    https://arxiv.org/abs/2103.01208, 2021 (algorithm 1, section 4.3).
    """
    plan = _plan(steps, larger_radius)

    def begin(image: Array, begun: Array, dtype: Any, target: Array, full: bool) -> SearchState:
        point, size = project_l1_box(image, begun, radius * int(plan.radii[0])), image.size
        changed = _changed(image, point)
        memory = SparseMemory(
            target=target,
            count=jnp.int32(0),
            best=point,
            slope=jnp.zeros_like(point),
            value=jnp.asarray(-jnp.inf, dtype),
            changed=jnp.int32(size) if full else changed,
            left_out=jnp.int32(4 * size // 5) if full else _left_out(changed, size),
            step_size=jnp.asarray(radius * int(plan.radii[0]), image.dtype),
        )
        found = image if larger_radius else point
        return SearchState(point, found, jnp.bool_(False), jnp.bool_(False), memory)

    def tell(state: SearchState, image: Array, label: Array, answer: Answer) -> SearchState:
        memory, point = state.memory, state.point
        starting, checking, ending, last_ball = (
            jnp.asarray(table)[memory.count] for table in (plan.starting, plan.checking, plan.ending, plan.last_ball)
        )
        here, ahead = (jnp.asarray(plan.radii)[memory.count + i].astype(image.dtype) * radius for i in (0, 1))
        value = answer.value.astype(memory.value.dtype)
        slope = jnp.where(jnp.isfinite(answer.gradient), answer.gradient, 0)
        wrong = last_ball & misclassified(answer.logits, label)

        better = starting | (value > memory.value) | jnp.isnan(memory.value)
        best = jnp.where(better, point, memory.best)
        best_slope = jnp.where(better, slope, memory.slope)
        best_value = jnp.where(better, value, memory.value)

        now = _changed(image, best)
        fewer = now.astype(jnp.float32) < KEPT * memory.changed.astype(jnp.float32)
        back = checking & fewer
        smaller = jnp.maximum(memory.step_size / SHRINK, SMALLEST * here)
        step_size = jnp.where(checking, jnp.where(fewer, here, smaller), memory.step_size)
        left_out = jnp.where(checking, _left_out(now, image.size), memory.left_out)
        current, slope = jnp.where(back, best, point), jnp.where(back, best_slope, slope)

        moved = current + step_size * _sparse_direction(slope, left_out)
        following = project_l1_box(image, jnp.where(ending, best, moved), ahead)
        entered = _changed(image, following)
        broken = state.broken | wrong
        return SearchState(
            point=following,
            found=jnp.where(wrong, point, jnp.where(broken | ~last_ball, state.found, best)),
            broken=broken,
            done=memory.count + 1 >= len(plan.starting),
            memory=SparseMemory(
                target=memory.target,
                count=memory.count + 1,
                best=best,
                slope=best_slope,
                value=best_value,
                changed=jnp.where(ending, entered, jnp.where(checking, now, memory.changed)),
                left_out=jnp.where(ending, _left_out(entered, image.size), left_out),
                step_size=jnp.where(ending, ahead, step_size),
            ),
        )

    return begin, tell


class _Plan(NamedTuple):
    """What each answer is, `[answers]`: the first one in a ball; one after which the step is reconsidered; the last one
    in a ball that is not the last; one in the last ball. `radii [answers + 1]`: of each point's ball, in radii."""

    starting: np.ndarray
    checking: np.ndarray
    ending: np.ndarray
    last_ball: np.ndarray
    radii: np.ndarray


def _plan(steps: int, larger_radius: bool) -> _Plan:
    third = -(-3 * steps // 10)
    balls = [(3, third), (2, third), (1, steps - 2 * third)] if larger_radius else [(1, steps)]
    rows: list[tuple[bool, bool, bool, bool, int]] = []
    for times, length in balls:
        interval = max(int(INTERVAL * length), 1)
        rows += [
            (i == 0, i > 0 and i % interval == 0, times > 1 and i == length, times == 1, times)
            for i in range(length + 1)
        ]
    starting, checking, ending, last_ball, radii = (np.array(column) for column in zip(*rows, strict=True))
    return _Plan(starting, checking, ending, last_ball, np.append(radii, 1).astype(np.int32))


def _changed(image: Array, point: Array) -> Array:
    return jnp.sum(point != image, dtype=jnp.int32)


def _left_out(changed: Array, size: int) -> Array:
    return jnp.clip((3 * size - 2 * changed) // 3, 0, size - 1)


def _sparse_direction(slope: Array, left_out: Array) -> Array:
    """Signs of the gradients that are as large as the one that comes after so many smaller ones, of l1 norm 1."""
    sizes = jnp.abs(slope)
    signs = jnp.where(sizes >= _ranked(sizes.reshape(-1), left_out), jnp.sign(slope), 0)
    return signs / (jnp.sum(jnp.abs(signs)) + 1e-10)


def _ranked(sizes: Array, rank: Array) -> Array:
    """The size that so many others come before in ascending order, found bit by bit: a sort takes many times longer.

    Floats that are not negative are ordered as their bits are.
    """
    width = jnp.finfo(sizes.dtype).bits
    words = jax.lax.bitcast_convert_type(sizes, jnp.dtype(f"uint{width}"))

    def narrow(i: Array, found: Array) -> Array:
        tried = found | (jnp.ones_like(found) << (width - 2 - i).astype(words.dtype))
        return jnp.where(jnp.sum(words < tried, dtype=jnp.int32) <= rank, tried, found)

    found = jax.lax.fori_loop(0, width - 1, narrow, jnp.zeros((), words.dtype))
    return jax.lax.bitcast_convert_type(found, sizes.dtype)
