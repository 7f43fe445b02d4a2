r"""Label flip: faulty workers compute honestly on wrong labels; the attack lies in their data, not in what they send.

.. math:: y \mapsto C - 1 - y
"""

import jax.numpy as jnp

from jaxrobust.typing import Array, Batch, Source, State


def label_flip(source: Source, *, classes: int, faulty: int, workers: int, accumulation: int = 1) -> Source:
    r"""Flip the labels in the faulty workers' share of each batch.

    .. math:: y_r \mapsto C - 1 - y_r \quad \text{where} \quad
              \Bigl\lfloor \frac{r \bmod (B / A)}{B / (A n)} \Bigr\rfloor < f

    A step's batch of B rows is computed in A parts, one after another, and each part is split among n workers in order:
    the first f of them are faulty, as in `hostile`. With one of 10 classes per worker, 3 becomes 6.

    Args:
      source: gives integer classes `[batch]` as targets.
      classes: C.
      faulty: f, how many workers are faulty.
      workers: n: devices times workers per device.
      accumulation: A, parts of a step's batch.

    Returns:
      A `Source` of the same examples, for training. Its state and fingerprint are the source's.

    Raises:
      ValueError: for less than two classes, a number of faulty workers that is negative or leaves no honest one, or no
        part; in the first batch, for a size that is not a multiple of the parts times the workers.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust import data
      >>> source = data.arrays(np.zeros((4, 2), np.uint8), np.array([0, 1, 2, 9]), shuffle=False)
      >>> flipped = label_flip(source, classes=10, faulty=1, workers=2)
      >>> flipped.batch(flipped.init(jax.random.key(0)), 0, jnp.arange(4), 4).targets.tolist()
      [9, 8, 2, 9]

    Reference: Fang, Cao, Jia and Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
    https://arxiv.org/abs/1911.11815, 2020 (section 5.1).
    """
    if classes < 2:
        raise ValueError(f"classes must be two or more, got {classes}")
    if not 0 <= faulty < workers:
        raise ValueError(f"faulty must be from 0 to less than the {workers} workers, got {faulty}")
    if accumulation < 1:
        raise ValueError(f"accumulation must be positive, got {accumulation}")

    def batch(state: State, step: Array | int, rows: Array, size: int) -> Batch:
        if size % (workers * accumulation):
            raise ValueError(
                f"batch size must be a multiple of {workers * accumulation} ({workers} workers x {accumulation} "
                f"parts), got {size}"
            )
        found = source.batch(state, step, rows, size)
        part = size // accumulation
        bad = rows % part // (part // workers) < faulty
        return found._replace(targets=jnp.where(bad, classes - 1 - found.targets, found.targets))

    return Source(source.init, batch, source.size, source.fingerprint, source.refresh)
