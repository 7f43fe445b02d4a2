"""Accuracy before and after attacks: what the evaluate slot of an experiment holds by default.

An attacked example counts as right only if the model is right on the clean image as well: the worst case of the two.
Keys hang on an example's number in its source, so that results depend on neither batch size nor device count.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jaxrobust.attacks.search import misclassified
from jaxrobust.typing import Array, Attack, Batch, Evaluated, Evaluation, Gallery, Key, Predict, Source


def accuracy(
    attacks: Mapping[str, Attack] | None = None,
    *,
    batch_size: int = 256,
    examples: int | None = None,
    curve: Callable[[float], Attack] | None = None,
    radii: Sequence[float] = (),
    curve_examples: int | None = None,
    gallery: int = 0,
) -> Evaluation:
    """Build an evaluation of clean and robust accuracy.

    Args:
      attacks: name -> attack.
      batch_size: examples that are attacked together; changes no result.
      examples: how many of the source's first examples are taken; all by default.
      curve: radius -> attack, for robust accuracy against the radius.
      radii: where the curve is measured, in units of the images' range; 0 gives the clean accuracy.
      curve_examples: how many of the first examples the curve is measured on; `examples` by default.
      gallery: how many of the first examples are returned as images, under the first attack (under the curve's at its
        largest radius where there is none).

    Returns:
      `(key, predict, source) -> Evaluated`, for a source in order (`shuffle=False`). Its metrics are "clean" and one
      for each attack, in [0, 1].

    Raises:
      ValueError: for numbers out of range, or a gallery or radii without an attack.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust import attacks, data, geometry
      >>> source = data.arrays(np.array([[0.2], [0.9]], np.float32), np.array([0, 1]), shuffle=False)
      >>> predict = lambda x: jnp.concatenate([0.5 - x, x - 0.5], 1)
      >>> evaluate = attacks.accuracy({"pgd": attacks.pgd(geometry.linf(), 0.35, steps=5)}, batch_size=2)
      >>> evaluate(jax.random.key(0), predict, source).metrics
      {'clean': 1.0, 'pgd': 0.5}

    Reference: Carlini et al., "On Evaluating Adversarial Robustness", https://arxiv.org/abs/1902.06705, 2019.
    """
    attacks = dict(attacks or {})
    least_values = (
        ("batch_size", batch_size, 1),
        ("examples", examples, 1),
        ("curve_examples", curve_examples, 1),
        ("gallery", gallery, 0),
    )
    for name, value, least in least_values:
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if len(radii) and curve is None:
        raise ValueError(f"radii need a curve, a function from a radius to an attack; got radii {tuple(radii)} alone")
    if gallery and not attacks and not len(radii):
        raise ValueError(f"a gallery of {gallery} needs an attack: give attacks, or curve and radii")
    by_radius = {} if curve is None else {float(radius): curve(radius) for radius in radii}
    shown = next(iter(attacks.values()), None) or (by_radius[max(by_radius)] if by_radius else None)

    @cache
    def compiled(source: Source, attack: Attack | None) -> Callable[..., tuple[Array, Array]]:
        def count(key: Key, predict: Predict, state: Any, step: Array, limit: Array) -> tuple[Array, Array]:
            rows = jnp.arange(batch_size)
            batch = source.batch(state, step, rows, batch_size)
            taken = (batch.weight > 0) & (step * batch_size + rows < limit)
            right = _right(predict, batch.inputs, batch) & taken
            if attack is not None:
                keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch.index)
                right &= _right(predict, attack(keys, predict, batch.inputs, batch.targets), batch)
            return jnp.sum(right), jnp.sum(taken)

        return jax.jit(count)

    def share(
        key: Key, predict: Predict, source: Source, state: Any, attack: Attack | None, limit: int | None
    ) -> float:
        limit = source.size if limit is None else min(limit, source.size)
        counts = [
            compiled(source, attack)(key, predict, state, jnp.int32(step), jnp.int32(limit))
            for step in range(-(-limit // batch_size))
        ]
        right, taken = np.sum(jax.device_get(counts), axis=0)
        return float(right / taken)

    @partial(jax.jit, static_argnums=0)
    def show(attack: Attack, key: Key, predict: Predict, batch: Batch) -> tuple[Array, ...]:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch.index)
        attacked = attack(keys, predict, batch.inputs, batch.targets)
        classes = (jnp.argmax(predict(images), -1) for images in (batch.inputs, attacked))
        return batch.inputs, attacked, batch.targets, *classes

    def evaluate(key: Key, predict: Predict, source: Source) -> Evaluated:
        predict = predict if isinstance(predict, jax.tree_util.Partial) else jax.tree_util.Partial(predict)
        state = source.init(key)
        metrics = {
            name: share(key, predict, source, state, attack, examples)
            for name, attack in {"clean": None, **attacks}.items()
        }
        kept = {
            radius: share(key, predict, source, state, attack, curve_examples or examples)
            for radius, attack in by_radius.items()
        }
        pictures = None
        if gallery and shown is not None:
            batch = source.batch(state, 0, jnp.arange(min(gallery, source.size)), source.size)
            pictures = Gallery(*map(gathered, show(shown, key, predict, batch)))
        return Evaluated(metrics, kept, pictures)

    return evaluate


def gathered(array: Array | np.ndarray) -> np.ndarray:
    """An array as NumPy's, gathered first where its parts lie on several processes."""
    here = not isinstance(array, jax.Array) or array.is_fully_addressable
    return np.asarray(array if here else process_allgather(array, tiled=True))


def _right(predict: Predict, images: Array, batch: Batch) -> Array:
    return ~misclassified(predict(images), batch.targets)
