"""Reference trajectories: where a fine solver goes from random fields."""

from collections.abc import Callable

import numpy as np

from jaxrobust.solvers.periodic import Periodic


def random_fields(
    generator: np.random.Generator, count: int, points: int, dimensions: int = 1, *, modes: int = 4, size: float = 1.0
) -> np.ndarray:
    """Smooth random fields of mean 0, sums of long waves.

    Args:
      generator: the source of randomness.
      count: how many.
      points: of the grid along a dimension, even.
      dimensions: 1 or 2.
      modes: the largest number of waves along a dimension, below half of the points.
      size: their root mean square, which each has exactly.

    Returns:
      `[count, points]` or `[count, points, points]`, float64.

    Raises:
      ValueError: for modes that the grid does not hold.

    Example:
      >>> import numpy as np
      >>> fields = random_fields(np.random.default_rng(0), 3, 16, size=2.0)
      >>> fields.shape, bool(np.allclose(np.mean(fields**2, 1), 4.0)), bool(np.allclose(fields.mean(1), 0.0))
      ((3, 16), True, True)
    """
    if not 1 <= modes < points / 2:
        raise ValueError(f"modes must lie in [1, {points / 2:.0f}), half of the points, got {modes}")
    grid = Periodic(points, 2 * np.pi, dimensions)
    within = np.prod(np.broadcast_arrays(*(np.abs(k) <= modes + 0.5 for k in grid.wavenumbers)), axis=0)
    within[(0,) * dimensions] = 0
    noise = generator.standard_normal((count, *(points,) * dimensions))
    fields = grid.field(grid.spectrum(noise) * within)
    return fields * size / np.sqrt(np.mean(fields**2, axis=grid.axes, keepdims=True))


def trajectories(
    step: Callable[[np.ndarray], np.ndarray], start: np.ndarray, steps: int, *, discarded: int = 0
) -> np.ndarray:
    """Follow a solver.

    Args:
      step: of states `[count, ...]`.
      start: the first states.
      steps: how many are kept after the first kept one.
      discarded: steps before that, in which the start is forgotten.

    Returns:
      `[count, steps + 1, ...]`.

    Raises:
      ValueError: for steps below 1, discarded below 0, or a state that is not finite: the solver has blown up.

    Example:
      >>> import numpy as np
      >>> trajectories(lambda u: 2 * u, np.array([1.0, 3.0]), 2, discarded=1)
      array([[ 2.,  4.,  8.],
             [ 6., 12., 24.]])
    """
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    if discarded < 0:
        raise ValueError(f"discarded must not be negative, got {discarded}")
    state, kept = start, []
    for number in range(discarded + steps + 1):
        if number > 0:
            state = step(state)
        if not np.isfinite(state).all():
            raise ValueError(f"the state is not finite after {number} steps: take a smaller dt, or more substeps")
        if number >= discarded:
            kept.append(state)
    return np.stack(kept, axis=1)
