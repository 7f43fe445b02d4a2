"""What makes an evaluation doubtful, and what to do about it.

Attacks that climb gradients mistake a model without gradients for a robust one; a model that draws, or that looks at
the whole batch, is not the function that they climb. None of this is proof of a fault: each line says what to look at.

Reference: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks", https://arxiv.org/abs/2003.01690, 2020; Tramer, Carlini, Brendel and Madry, "On Adaptive Attacks to
Adversarial Example Defenses", https://arxiv.org/abs/2002.08347, 2020.
"""

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.attacks import losses
from jaxrobust.attacks.pgd import per_example_keys
from jaxrobust.attacks.search import Randomized, answer_logits, folded
from jaxrobust.typing import Array, Key, Predict

AGAIN, SAME, SIMPLEX, HELPED = 4, 1e-4, 1e-5, 0.002


def check_model(logits_fn: Predict | Randomized, images: np.ndarray) -> int:
    """What a model makes of a batch, by its shapes alone: nothing is computed.

    Args:
      logits_fn: the classifier, or a `Randomized`.
      images: `[batch, ...]`.

    Returns:
      How many classes it tells apart.

    Raises:
      ValueError: if it is no function of JAX from images to logits `[batch, class]` of floating point, or changes its
        own state.
    """
    if not callable(logits_fn) and not isinstance(logits_fn, Randomized):
        raise ValueError(f"logits_fn must be a function or a Randomized, got {logits_fn!r}")
    asked = logits_fn.draw if isinstance(logits_fn, Randomized) else lambda keys, points: logits_fn(points)
    try:
        found = jax.eval_shape(asked, jax.random.split(jax.random.key(0), len(images)), images)
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError("logits_fn must be written in jax.numpy: NumPy takes no array that JAX traces") from error
    except Exception as error:
        # Flax's, where Flax was imported at all: importing it takes longer than this package.
        flax = sys.modules.get("flax.errors")
        if flax is None or not isinstance(error, flax.TraceContextError):
            raise
        raise ValueError(
            "logits_fn changes its own state, as a module in training mode does: call its eval() first, or wrap what "
            f"draws in attacks.Randomized ({' '.join(str(error).split())[:80]})"
        ) from error
    form = getattr(found, "shape", None)
    if form is None or len(form) != 2 or form[0] != len(images):
        told = f"shape {form}" if form is not None else f"a {type(found).__name__}"
        raise ValueError(f"logits_fn must return logits [{len(images)}, class] of {len(images)} images, got {told}")
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"logits must be of floating point, got {found.dtype}")
    return int(form[1])


def before_attacks(
    key: Key,
    logits_fn: Predict,
    images: np.ndarray,
    correct: np.ndarray,
    logits: np.ndarray,
    slopes: np.ndarray | None,
    averaged: bool = False,
) -> list[str]:
    """Look at a model on one batch.

    Args:
      key: for a model that draws.
      logits_fn: the classifier, or a `Randomized`.
      images: `[batch, ...]` in [0, 1].
      correct: `[batch]`, bool: whose logits are largest at their own class.
      logits: `[example, class]`, what it said of all examples, of which the batch is the first.
      slopes: `[batch, ...]`, or None, as `first_slopes` gives them.
      averaged: whether every attack takes the mean over several draws.

    Returns:
      One line for each doubt.
    """
    batch = jnp.asarray(images)
    keys, told = per_example_keys(key, len(batch)), []
    asked = jax.jit(answer_logits)
    first = _unit(asked(logits_fn, keys, batch))
    drawn = [_unit(asked(logits_fn, folded(keys, number), batch)) for number in range(AGAIN)]
    if max(float(jnp.max(jnp.linalg.norm(other - first, axis=1))) for other in drawn) > SAME:
        if not averaged:
            told.append(
                "the model draws: the same images gave other logits; take autoattack(..., version='rand'), whose "
                "gradients are means over draws"
            )
    elif len(batch) > 1:
        # One half in the other one's place too: the program's shape stays, and nothing compiles anew.
        rows = len(batch) // 2
        half = jnp.concatenate([batch[: len(batch) - rows], batch[:rows]])
        if float(jnp.max(jnp.linalg.norm(_unit(asked(logits_fn, keys, half))[:rows] - first[:rows], axis=1))) > 1e-2:
            told.append(
                "an image's logits depend on the others of its batch, as those of a model in training mode do: pass "
                "logits of the evaluation mode, with running batch statistics and without dropout"
            )
    inside = np.min(logits) >= -SIMPLEX and np.max(logits) <= 1 + SIMPLEX
    if inside and np.abs(logits.sum(1) - 1).max() < SIMPLEX:
        told.append("the outputs are probabilities, whose gradients vanish: pass logits, without the softmax")
    rows = None if slopes is None else slopes.reshape(len(images), -1)
    flat = 0 if rows is None else np.sum(correct & ~rows.any(1))
    if flat:
        told.append(
            f"{flat} of {len(images)} images have a gradient of exactly 0: something masks it (a step function, "
            "saturation, quantization); put a smooth stand-in behind it, or rely on Square and on transfer"
        )
    undefined = 0 if rows is None else np.sum(correct & ~np.isfinite(rows).all(1))
    if undefined:
        told.append(
            f"{undefined} of {len(images)} images have a gradient that is not finite somewhere (a root or a norm at 0, "
            "or a jnp.where around one), and taken for 0 there: mend the model, or rely on Square and on transfer"
        )
    return told


def first_slopes(key: Key, logits_fn: Predict, images: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """Gradients of the margin at images.

    Args:
      key: for a model that draws.
      logits_fn: the classifier, or a `Randomized`.
      images: `[batch, ...]`.
      labels: `[batch]`.

    Returns:
      `[batch, ...]`; None for a model behind a callback, which has no gradient.
    """
    try:
        return np.asarray(_slopes(logits_fn, per_example_keys(key, len(images)), images, labels))
    except ValueError as error:
        if "callback" in str(error).lower():
            return None
        raise


def after_attacks(names: Sequence[str], blind: Sequence[bool], correct: np.ndarray) -> list[str]:
    """Look at who broke what.

    Args:
      names: of the attacks, in order.
      blind: which of them go by logits alone, as Square does.
      correct: `[attack, example]`, cumulative.

    Returns:
      One line for each doubt.
    """
    left = correct.mean(axis=1)
    helped = [name for at, name in enumerate(names) if at and blind[at] and left[at - 1] - left[at] > HELPED]
    return [
        f"{name} broke what no gradient had broken: gradients are masked; attack a smooth stand-in of the model too"
        for name in helped
    ]


@jax.jit
def _slopes(logits_fn: Predict, keys: Array, images: Array, labels: Array) -> Array:
    return jax.grad(lambda points: jnp.sum(losses.margin(answer_logits(logits_fn, keys, points), labels)))(images)


def _unit(logits: Array) -> Array:
    return logits / jnp.maximum(jnp.linalg.norm(logits, axis=1, keepdims=True), jnp.finfo(logits.dtype).tiny)
