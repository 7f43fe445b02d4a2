"""The worst case over a suite, as the evaluate slot of an experiment takes it.

What `evaluate` does for arrays and a function, this does for a source and a trained model.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.attacks.accuracy import gathered
from jaxrobust.attacks.evaluate import Robustness, Standing, Suite, evaluate
from jaxrobust.attacks.settings import check_counts
from jaxrobust.typing import Attack, Evaluated, Evaluation, Key, Predict, Source


def worst_case(
    suite: Suite | Attack,
    *,
    batch_size: int = 256,
    examples: int | None = None,
    file: str | Path | None = None,
    progress: Callable[[Standing], None] | None = None,
    report: Callable[[Robustness], None] | None = None,
) -> Evaluation:
    """Build an evaluation under every attack of a suite.

    Args:
      suite: name -> attack, as `autoattack` gives it.
      batch_size: images that the model is asked about at once, over all devices; changes no result.
      examples: how many of the source's first examples are taken; all by default.
      file: where the state is kept, so that a killed evaluation goes on.
      progress: called whenever examples are settled.
      report: called with all that was found: images, interval, times.

    Returns:
      `(key, predict, source) -> Evaluated`, for a source in order (`shuffle=False`). Its metrics are "clean", one for
      each attack (right under it and under all before it) and "robust", in [0, 1].

    Raises:
      ValueError: if examples or batch_size is not positive.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust import attacks, data, geometry
      >>> source = data.arrays(np.array([[0.2], [0.9]], np.float32), np.array([0, 1]), shuffle=False)
      >>> predict = lambda x: jnp.concatenate([0.5 - x, x - 0.5], 1)
      >>> final = attacks.worst_case({"pgd": attacks.pgd(geometry.linf(), 0.35, steps=5)}, batch_size=2)
      >>> final(jax.random.key(0), predict, source).metrics
      {'clean': 1.0, 'pgd': 0.5, 'robust': 0.5}

    Reference: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks", https://arxiv.org/abs/2003.01690, 2020.
    """
    check_counts(batch_size=batch_size, examples=1 if examples is None else examples)

    def final(key: Key, predict: Predict, source: Source) -> Evaluated:
        images, labels = in_order(key, source, examples, batch_size)
        found = evaluate(key, predict, images, labels, suite, batch_size=batch_size, file=file, progress=progress)
        if report is not None:
            report(found)
        each = {name: float(row.mean()) for name, row in zip(found.names, found.correct, strict=True)}
        return Evaluated({"clean": found.clean_accuracy, **each, "robust": found.robust_accuracy}, {}, None)

    return final


def in_order(
    key: Key, source: Source, examples: int | None = None, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The first examples of a source.

    Args:
      key: of the source; one in order ignores it.
      source: of images and classes.
      examples: how many; all by default.
      batch_size: how many are read at once.

    Returns:
      Images `[example, ...]` and labels `[example]`, as NumPy's.

    Raises:
      ValueError: if examples or batch_size is not positive.
    """
    check_counts(batch_size=batch_size, examples=1 if examples is None else examples)
    count = source.size if examples is None else min(examples, source.size)
    state, read = source.init(key), jax.jit(source.batch, static_argnums=3)
    parts = [read(state, number, jnp.arange(batch_size), batch_size) for number in range(-(-count // batch_size))]
    images, labels = (
        np.concatenate([gathered(part) for part in column])[:count]
        for column in ([batch.inputs for batch in parts], [batch.targets for batch in parts])
    )
    return images, labels
