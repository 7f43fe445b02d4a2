r"""Windows of trajectories: a state, and the states that follow it.

Window number :math:`i` of trajectories of T states begins at state :math:`s (i \bmod w)` of trajectory
:math:`\lfloor i / w \rfloor`, with s the stride and :math:`w = \lfloor (T - 1 - K) / s \rfloor + 1` windows of K steps
in each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.data.arrays import fingerprint_of, picked
from jaxrobust.typing import Array, Batch, Key, PyTree, Source


class WindowsState(NamedTuple):
    """State of a source of windows.

    Attributes:
      trajectories: leaves `[count, time, ...]`.
      key: of the epochs' orders.
    """

    trajectories: PyTree
    key: Key


def windows(trajectories: PyTree, steps: int, *, stride: int = 1, shuffle: bool = True) -> Source:
    """A source of windows of trajectories that are held in device memory once, however much the windows overlap.

    Args:
      trajectories: an array of floats `[count, time, ...]`, or a pytree of them.
      steps: K, states that follow the first one.
      stride: states between the beginnings of two windows.
      shuffle: as in `data.arrays`: True for endless training, False for a test set, in order and once through.

    Returns:
      A `Source`: inputs are states `[batch, ...]`, targets the states that follow, `[batch, steps, ...]`, in the dtypes
      of the trajectories (float64 becomes float32 without x64).

    Raises:
      ValueError: for leaves that are not finite floats of one count and time, a window that no trajectory holds, or a
        stride below 1.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust import data
      >>> source = data.windows(np.arange(10.0).reshape(2, 5), 2, stride=2, shuffle=False)
      >>> batch = source.batch(source.init(jax.random.key(0)), 0, jnp.arange(4), 4)
      >>> batch.inputs.tolist(), batch.targets.tolist()
      ([0.0, 2.0, 5.0, 7.0], [[1.0, 2.0], [3.0, 4.0], [6.0, 7.0], [8.0, 9.0]])
    """
    trajectories = jax.tree.map(np.asarray, trajectories)
    count, time = _count_and_time(trajectories)
    if stride < 1:
        raise ValueError(f"stride must be positive, got {stride}")
    if not 1 <= steps < time:
        raise ValueError(f"steps must lie in [1, {time}), for a trajectory has {time} states, got {steps}")
    each = (time - 1 - steps) // stride + 1

    def init(key: Key) -> WindowsState:
        return WindowsState(jax.tree.map(jnp.asarray, trajectories), key)

    def batch(state: WindowsState, step: Array | int, rows: Array, size: int) -> Batch:
        index, weight = picked(state.key, step, rows, size, count * each, shuffle)
        which, first = index // each, stride * (index % each)

        def cut(leaf: Array) -> tuple[Array, Array]:
            return leaf[which, first], leaf[which[:, None], first[:, None] + jnp.arange(1, steps + 1)]

        pairs = jax.tree.map(cut, state.trajectories)
        inputs, targets = jax.tree.transpose(jax.tree.structure(trajectories), jax.tree.structure((0, 0)), pairs)
        return Batch(inputs, targets, index, weight)

    fingerprint = fingerprint_of(
        f"windows {steps} {stride} {jax.tree.structure(trajectories)}", *jax.tree.leaves(trajectories)
    )
    return Source(init, batch, count * each, fingerprint)


def _count_and_time(trajectories: PyTree) -> tuple[int, int]:
    leaves = jax.tree.leaves(trajectories)
    shapes = {leaf.shape[:2] for leaf in leaves}
    if len(shapes) != 1 or any(leaf.ndim < 2 or not leaf.size for leaf in leaves):
        raise ValueError(
            f"trajectories must be [count, time, ...] with one count and time, got shapes {[a.shape for a in leaves]}"
        )
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"trajectories must be floats, got {leaf.dtype}: cast them")
        if not np.isfinite(leaf).all():
            raise ValueError("trajectories must be finite, got a number that is not: leave out those that blew up")
    return shapes.pop()
