r"""Stratified sampling: as many examples of each stratum in every batch, weighted so that the mean stays unbiased.

The N examples are split into K strata of N_k. Row r of a batch of B = b K is a uniform draw, with replacement, from
stratum k = r mod K, and its loss has the weight w_k = K N_k / N. For any partition and any quantity g_i of an example

.. math:: \hat g = \frac{1}{B} \sum_r w_r g_r, \quad E[\hat g] = \frac{1}{N} \sum_i g_i, \quad
          V[\hat g] = \frac{1}{N^2} \sum_k \frac{N_k^2 V_k}{b}

with V_k the variance of g within stratum k: a partition into examples of alike gradients makes it small.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrobust.typing import Array, Batch, Key, Loss, Predict, Source, State

Examples: TypeAlias = Callable[[Array], Batch]
"""`(index [n]) -> Batch` of those examples."""
Reassign: TypeAlias = Callable[[Key, Predict, Examples, int], Array]
"""`(key, predict, examples, size) -> [size]` int32 strata, each in [0, strata); traced."""


class StratifiedState(NamedTuple):
    """State of a stratified source.

    Attributes:
      source: the wrapped source's state.
      key: of the draws.
      order: `[N]` int32, examples sorted by stratum.
      offsets: `[K + 1]` int32; stratum k is `order[offsets[k]:offsets[k + 1]]`.
    """

    source: State
    key: Key
    order: Array
    offsets: Array


def stratified(source: Source, assignment: np.ndarray, strata: int, *, reassign: Reassign | None = None) -> Source:
    r"""Draw each batch from all strata alike.

    .. math:: w_k = K N_k / N

    Args:
      source: gives example n at position n, as `data.arrays(..., shuffle=False)` does. Random transforms go around the
        stratified source, not inside it: `data.transformed(stratified(...), ...)`.
      assignment: `[N]` integers, each example's stratum in [0, strata).
      strata: K; the batch size must be a multiple of it.
      reassign: gives a new assignment when the trainer refreshes the source; None keeps the first. A stratum that it
        leaves empty has the weight 0.

    Returns:
      A `Source` of the same examples, of weights with mean 1.

    Raises:
      ValueError: for an assignment of another length, out of its range or with an empty stratum, or a source that is
        shuffled; in the first batch, for a size that is not a multiple of strata.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust.typing import Batch, Source
      >>> def batch(state, step, rows, size):
      ...     return Batch(state[rows], rows, rows, jnp.ones(rows.size))
      >>> plain = Source(lambda key: jnp.array([5.0, 1.0, 2.0, 3.0]), batch, size=4, fingerprint="")
      >>> source = stratified(plain, np.array([1, 0, 0, 0]), strata=2)
      >>> drawn = source.batch(source.init(jax.random.key(0)), 0, jnp.arange(4), 4)
      >>> drawn.weight.tolist(), drawn.index[1::2].tolist()
      ([1.5, 0.5, 1.5, 0.5], [0, 0])

    Reference: Faghri, Duvenaud, Fleet and Ba, "A Study of Gradient Variance in Deep Learning",
    https://arxiv.org/abs/2007.04532, 2020.
    """
    assignment = np.asarray(assignment)
    if assignment.shape != (source.size,) or not np.issubdtype(assignment.dtype, np.integer):
        raise ValueError(
            f"assignment must hold {source.size} integers, got {assignment.dtype} of shape {assignment.shape}"
        )
    if assignment.min() < 0 or assignment.max() >= strata:
        raise ValueError(f"assignment must lie in [0, {strata}), got {assignment.min()} to {assignment.max()}")
    empty = np.flatnonzero(np.bincount(assignment, minlength=strata) == 0)
    if empty.size:
        raise ValueError(f"every stratum must have an example, got none in {empty.tolist()[:8]}: renumber the strata")
    first = jnp.arange(min(source.size, 16), dtype=jnp.int32)
    if not np.array_equal(source.batch(source.init(jax.random.key(0)), 0, first, source.size).index, first):
        raise ValueError("source must give example n at position n, got another order: build it with shuffle=False")

    def examples(state: State, index: Array) -> Batch:
        return source.batch(state, 0, index, source.size)

    def init(key: Key) -> StratifiedState:
        inner, own = jax.random.split(key)
        return StratifiedState(source.init(inner), own, *_sorted(jnp.asarray(assignment, jnp.int32), strata))

    def batch(state: StratifiedState, step: Array | int, rows: Array, size: int) -> Batch:
        if size % strata:
            raise ValueError(f"batch size must be a multiple of {strata} strata, got {size}")
        stratum = rows % strata
        start = state.offsets[stratum]
        count = state.offsets[stratum + 1] - start
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(state.key, step), rows)
        draw = jax.vmap(lambda key, n: jax.random.randint(key, (), 0, jnp.maximum(n, 1)))(keys, count)
        drawn = examples(state.source, state.order[jnp.minimum(start + draw, source.size - 1)])
        share = count.astype(jnp.float32) * (strata / source.size)
        return drawn._replace(weight=drawn.weight * share)

    if reassign is None:
        return Source(init, batch, source.size, source.fingerprint)

    @jax.jit
    def regrouped(key: Key, state: StratifiedState, predict: Predict) -> tuple[Array, Array]:
        return _sorted(reassign(key, predict, lambda index: examples(state.source, index), source.size), strata)

    def refresh(key: Key, state: StratifiedState, predict: Predict) -> StratifiedState:
        order, offsets = regrouped(key, state, predict)
        return state._replace(order=order, offsets=offsets)

    return Source(init, batch, source.size, source.fingerprint, refresh)


def loss_quantiles(
    strata: int, *, loss: Loss = optax.losses.softmax_cross_entropy_with_integer_labels, batch_size: int = 256
) -> Reassign:
    r"""Group examples by their loss: stratum k holds the k-th of K equal parts of the losses in rising order.

    .. math:: k_i = \lfloor K \, \mathrm{rank}(\ell_i) / N \rfloor

    Args:
      strata: K, at most the number of examples.
      loss: `(logits [batch, class], targets) -> [batch]`.
      batch_size: examples of one forward pass.

    Returns:
      A function for `stratified(..., reassign=...)`.

    Raises:
      ValueError: for strata or batch_size that is not positive; when called, for more strata than examples.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.typing import Batch
      >>> def examples(index):
      ...     return Batch(jnp.array([3.0, 1.0, 2.0, 0.0])[index], index, index, jnp.ones(index.size))
      >>> group = loss_quantiles(2, loss=lambda outputs, targets: outputs)
      >>> group(None, lambda inputs: inputs, examples, 4).tolist()
      [1, 0, 1, 0]
    """
    for name, value in (("strata", strata), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")

    def reassign(key: Key, predict: Predict, examples: Examples, size: int) -> Array:
        del key
        if strata > size:
            raise ValueError(f"strata must be at most the {size} examples, got {strata}")

        def losses(index: Array) -> Array:
            part = examples(index)
            return loss(predict(part.inputs), part.targets)

        width = min(batch_size, size)
        index = jnp.minimum(jnp.arange(-(-size // width) * width, dtype=jnp.int32), size - 1).reshape(-1, width)
        found = jax.lax.map(losses, index).reshape(-1)[:size]
        rank = jnp.zeros(size, jnp.int32).at[jnp.argsort(found)].set(jnp.arange(size, dtype=jnp.int32))
        # Counted on the host: strata times size may exceed an int32.
        starts = [-(-part * size // strata) for part in range(strata)]
        return jnp.searchsorted(jnp.array(starts, jnp.int32), rank, side="right").astype(jnp.int32) - 1

    return reassign


def _sorted(assignment: Array, strata: int) -> tuple[Array, Array]:
    counts = jnp.bincount(assignment, length=strata).astype(jnp.int32)
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    return jnp.argsort(assignment).astype(jnp.int32), offsets
