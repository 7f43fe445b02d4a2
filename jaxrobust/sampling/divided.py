r"""Data that workers do not share: each draws from a part of its own, as federated learning and faulty shards have it.

Worker k of n sees examples of part k alone. Cut by rank of the label, worker k has the labels between the quantiles
k / n and (k + 1) / n: with ten classes and twelve workers, one class or two.
"""

import numpy as np

from jaxrobust.sampling.stratified import stratified
from jaxrobust.typing import Array, Batch, Source, State


def divided(source: Source, assignment: np.ndarray, *, workers: int, accumulation: int = 1) -> Source:
    r"""Let each worker draw from its own examples.

    .. math:: \text{row } r \text{ draws from part } \Bigl\lfloor \frac{r \bmod (B / A)}{B / (A n)} \Bigr\rfloor

    A step's batch of B rows is computed in A parts, one after another, and each part is split among n workers in order.

    Args:
      source: gives example n at position n, as `data.arrays(..., shuffle=False)` does.
      assignment: `[N]` integers, the worker of each example, in [0, workers).
      workers: n: devices times workers per device.
      accumulation: A, parts of a step's batch.

    Returns:
      A `Source` of the same examples, drawn with replacement; their weights make up for parts of unequal sizes.

    Raises:
      ValueError: as `stratified`; for no part; in the first batch, for a size that is not a multiple of the parts
        times the workers.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust import data
      >>> labels = np.array([1, 0, 1, 0])
      >>> source = data.arrays(np.zeros((4, 2), np.uint8), labels, shuffle=False)
      >>> mine = divided(source, by_label(labels, workers=2), workers=2)
      >>> mine.batch(mine.init(jax.random.key(0)), 0, jnp.arange(4), 4).targets.tolist()
      [0, 0, 1, 1]

    Reference: Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
    https://arxiv.org/abs/2006.09365, 2022 (section 5).
    """
    if accumulation < 1:
        raise ValueError(f"accumulation must be positive, got {accumulation}")
    strata = stratified(source, assignment, workers)

    def batch(state: State, step: Array | int, rows: Array, size: int) -> Batch:
        if size % (workers * accumulation):
            raise ValueError(
                f"batch size must be a multiple of {workers * accumulation} ({workers} workers x {accumulation} "
                f"parts), got {size}"
            )
        part = size // accumulation
        share = part // workers
        place, within = rows // part * share + rows % share, rows % part // share
        # A stratified source gives row r an example of stratum r mod n.
        return strata.batch(state, step, place * workers + within, size)

    return Source(strata.init, batch, source.size, source.fingerprint)


def by_label(labels: np.ndarray, *, workers: int) -> np.ndarray:
    r"""Equal parts of the examples in order of their labels.

    .. math:: k_i = \lfloor n \, \mathrm{rank}(y_i) / N \rfloor

    Args:
      labels: `[N]`.
      workers: n, at most N.

    Returns:
      `[N]` int32 for `divided`.

    Raises:
      ValueError: for fewer labels than workers.

    Example:
      >>> import numpy as np
      >>> by_label(np.array([3, 1, 2, 0]), workers=2).tolist()
      [1, 0, 1, 0]
    """
    labels = np.asarray(labels)
    if not 1 <= workers <= len(labels):
        raise ValueError(f"workers must be in [1, {len(labels)}], got {workers}")
    part = np.empty(len(labels), np.int32)
    part[np.argsort(labels, kind="stable")] = np.arange(len(labels)) * workers // len(labels)
    return part
