"""A program outside JAX as a function inside it, whose failures cost one query each."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.typing import Array


class Failure(NamedTuple):
    """A query that gave no answer.

    Attributes:
      query: its number, from 0.
      reason: one line.
    """

    query: int
    reason: str


class BlackBox:
    """What `black_box` returns: call it with an array, inside `jit`, `vmap` or a custom derivative.

    Attributes:
      failures: the queries that gave no answer, in order.
      queries: how many were asked.
      calls: how often the function was called, those that asked again included.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        shape: tuple[int, ...],
        dtype: Any,
        batched: bool,
        stop_after: int | None,
    ) -> None:
        self._function, self._shape, self._dtype = function, tuple(shape), np.dtype(dtype)
        self._batched, self._stop_after = batched, stop_after
        # A function may ask the same box again.
        self._lock = threading.RLock()
        self.failures: list[Failure] = []
        self.queries = 0
        self.calls = 0

    def __call__(self, inputs: Array) -> Array:
        """Ask for the answer to one input; under `vmap`, to many."""
        answer = jax.ShapeDtypeStruct(self._shape, self._dtype)
        rank = jnp.ndim(inputs)
        # Under `vmap` axes come before the input's own, and all of them are asked in one call of the host.
        return jax.pure_callback(lambda given: self._answers(given, rank), answer, inputs, vmap_method="expand_dims")

    def _answers(self, inputs: Any, rank: int) -> np.ndarray:
        given = np.asarray(inputs)
        leading = given.shape[: given.ndim - rank]
        rows = given.reshape((-1, *given.shape[given.ndim - rank :]))
        with self._lock:
            first, self.queries = self.queries, self.queries + len(rows)
            if self.stopped:
                found = np.full((len(rows), *self._shape), np.nan, self._dtype)
            else:
                found = self._together(rows, first) if self._batched else None
            if found is None:
                found = np.stack([self._one(row, first + number) for number, row in enumerate(rows)])
        return found.reshape((*leading, *self._shape))

    def _together(self, rows: np.ndarray, first: int) -> np.ndarray | None:
        """All answers of one call; None where it failed as a whole, and each must be asked by itself."""
        self.calls += 1
        try:
            found = np.asarray(self._function(rows.copy()))
        except Exception:
            return None
        if found.shape != (len(rows), *self._shape):
            return None
        if np.issubdtype(found.dtype, np.floating):
            # The common case at once: row by row, Python would take longer than many a program.
            with np.errstate(over="ignore"):
                narrow = found.astype(self._dtype)
            if np.isfinite(narrow).all():
                return narrow
        return np.stack([self._checked(answer, first + number) for number, answer in enumerate(found)])

    def _one(self, row: np.ndarray, query: int) -> np.ndarray:
        self.calls += 1
        try:
            # A copy, for a program may work in place.
            answer = self._function(row[None].copy())[0] if self._batched else self._function(row.copy())
        except Exception as error:
            # A program of somebody else's may raise anything; the query is lost, and the run is not.
            return self._lost(query, _line(error))
        return self._checked(answer, query)

    def _checked(self, answer: Any, query: int) -> np.ndarray:
        try:
            with np.errstate(over="ignore"):
                found = np.asarray(answer, self._dtype)
        except Exception as error:
            # What a foreign object does when it is converted is as much somebody else's.
            return self._lost(query, f"gave {type(answer).__name__}, no numbers: {_line(error)}")
        if found.shape != self._shape:
            return self._lost(query, f"gave the shape {found.shape}, not {self._shape}")
        return found if np.isfinite(found).all() else self._lost(query, "gave a number that is not finite")

    def _lost(self, query: int, reason: str) -> np.ndarray:
        self.failures.append(Failure(query, reason))
        return np.full(self._shape, np.nan, self._dtype)

    @property
    def stopped(self) -> bool:
        """Whether more queries failed than are allowed."""
        return self._stop_after is not None and len(self.failures) > self._stop_after

    def check(self) -> None:
        """Raise RuntimeError where the box has stopped; for the loop of the host, after each step."""
        if self.stopped:
            query, reason = self.failures[-1]
            raise RuntimeError(
                f"the black box failed in {len(self.failures)} of {self.queries} queries, more than the "
                f"{self._stop_after} allowed; at last in query {query}: {reason}"
            )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def black_box(
    function: Callable[[np.ndarray], Any],
    shape: tuple[int, ...] = (),
    dtype: Any = np.float32,
    *,
    batched: bool = False,
    stop_after: int | None = None,
) -> BlackBox:
    """Make a host function callable from JAX.

    A query that raises, or gives a wrong shape or a number that is not finite, is answered with NaN and kept by number
    in `failures`; the other queries are unharmed. `optax.zero_nans()` behind an estimator leaves its coordinates out.

    Args:
      function: a NumPy array to a number or an array of `shape`; with `batched`, `[n, ...]` to `[n, *shape]`.
      shape: of one answer.
      dtype: of an answer, a float's.
      batched: whether one call answers many inputs; where it fails as a whole, each is asked again by itself.
      stop_after: failures that are allowed; None for any number. Beyond them nothing is asked any more, every answer is
        NaN, so that a trainer stops, and `check()` raises. (An error out of a device's program would leave the others
        waiting.)

    Returns:
      A `BlackBox`, from arrays to arrays; it has no derivative of its own: see `differentiable`.

    Raises:
      ValueError: for a dtype that is no float's, or a negative limit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def score(x):
      ...     return 1.0 / float(x[0])
      >>> box = black_box(score)
      >>> jax.jit(jax.vmap(box))(jnp.array([[2.0], [0.0]])).tolist(), box.queries, box.failures[0].query
      ([0.5, nan], 2, 1)
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a float's, got {np.dtype(dtype)}: NaN stands for a query without an answer")
    if jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype):
        raise ValueError(f"dtype must be one that JAX has now, got {np.dtype(dtype)}: set jax_enable_x64")
    if stop_after is not None and stop_after < 0:
        raise ValueError(f"stop_after must not be negative, got {stop_after}")
    return BlackBox(function, shape, dtype, batched, stop_after)
