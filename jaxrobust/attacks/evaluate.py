r"""The worst case over a suite of attacks, example by example.

An example is robust if every attack of the suite leaves it right. Attacks come one after another, and each sees only
what is still robust. A `Search` is driven step by step in a batch of fixed size: an example leaves its place as soon as
it is broken or its runs are over, and the next one takes it, so that nothing compiles anew and a broken example costs
nothing more. Keys hang on an example's number, so that results depend neither on the size of the batch nor on how many
devices share it. What an attack found is asked of the model once more, and its norm is computed in float64.

Reference: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks", https://arxiv.org/abs/2003.01690, 2020 (section 5, the ensemble; the places are ours).
"""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.attacks.accuracy import gathered
from jaxrobust.attacks.checks import after_attacks, before_attacks, check_model, first_slopes
from jaxrobust.attacks.evaluation_file import EvaluationFile, fingerprint
from jaxrobust.attacks.places import Places, attacked, fitting, places_for, predicted, replicated, searched
from jaxrobust.attacks.search import Randomized, Search, misclassified
from jaxrobust.attacks.settings import check_counts
from jaxrobust.geometry import Geometry
from jaxrobust.precision import at_least_float32
from jaxrobust.trees import as_argument
from jaxrobust.typing import Array, Attack, Key, Predict

Suite: TypeAlias = Mapping[str, Attack] | Sequence[Attack]
TOLERANCE, AGAIN = 1e-6, "classified rightly when asked again"


class Robustness(NamedTuple):
    """What an evaluation found.

    Attributes:
      names: of the attacks, in order.
      clean: `[example]` bool, right on the clean image.
      correct: `[attack, example]` bool, right on the clean image and after this attack and all before it.
      adversarial: `[example, ...]`, a misclassified image where one was found, else the clean one.
      questions: `[attack]`, how many images the model was asked about, with a gradient or without; 0 for an attack that
        is no `Search`.
      seconds: `[attack]` of wall clock, compilation left out; of an attack that was killed, since it went on.
      compile_seconds: `[attack]`.
      warnings: lines on what makes the result doubtful, each with what to do about it.
    """

    names: tuple[str, ...]
    clean: np.ndarray
    correct: np.ndarray
    adversarial: np.ndarray
    questions: np.ndarray
    seconds: np.ndarray
    compile_seconds: np.ndarray
    warnings: tuple[str, ...]

    @property
    def clean_accuracy(self) -> float:
        """Share of the examples that are right before any attack."""
        return float(self.clean.mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of the examples that are right whatever the suite does."""
        return float((self.correct[-1] if len(self.correct) else self.clean).mean())

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        r"""Wilson's interval of the robust accuracy, for examples that are a sample of many.

        .. math:: \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4 n^2}}{1 + z^2 / n}

        Args:
          confidence: in (0, 1).

        Returns:
          Lower and upper end, in [0, 1].

        Raises:
          ValueError: for a confidence outside (0, 1).

        Reference: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the
        American Statistical Association 22, https://doi.org/10.1080/01621459.1927.10502953, 1927.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
        n, p, z = len(self.clean), self.robust_accuracy, NormalDist().inv_cdf((1 + confidence) / 2)
        center, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return max(0.0, (center - half) / (1 + z**2 / n)), min(1.0, (center + half) / (1 + z**2 / n))


class Standing(NamedTuple):
    """How far an evaluation is.

    Attributes:
      name: of the attack that runs.
      settled: examples that it is through with.
      total: examples that it was given.
      robust: examples of all that are still robust.
      examples: all of them.
    """

    name: str
    settled: int
    total: int
    robust: int
    examples: int


def evaluate(
    key: Key,
    logits_fn: Predict,
    images: Array | np.ndarray,
    labels: Array | np.ndarray,
    suite: Suite | Attack,
    *,
    batch_size: int = 256,
    file: str | Path | None = None,
    progress: Callable[[Standing], None] | None = None,
    check: bool = True,
) -> Robustness:
    """Attack a classifier by every attack of a suite, and count what withstands all of them.

    Args:
      key: everything random follows from it and an example's number.
      logits_fn: `[batch, ...] -> [batch, class]` logits, in evaluation mode and a pure function of its argument; a
        `Randomized` one draws. A `jax.tree_util.Partial` carries its parameters as arguments of the compiled programs.
      images: `[example, ...]` of floating point in [0, 1]; attacked in the precision that JAX has for them, in 32 bits
        at least.
      labels: `[example]` integers in [0, class).
      suite: name -> attack, as `autoattack` gives it; or a sequence of attacks, or one. An attack that is built anew
        is compiled anew: build it once for several models.
      batch_size: images that the model is asked about at once, over all devices; changes no result.
      file: where the state is kept, twice a minute; what a killed evaluation had settled is read from it, and an
        example that was under way begins its run anew. None keeps nothing. For one process.
      progress: called whenever examples are settled.
      check: whether to look for what makes a result doubtful: softmax outputs, gradients of zero, batch statistics,
        randomness. It costs a few questions of one batch.

    Returns:
      A `Robustness`. What an attack claims and the model does not confirm when it is asked once more is not counted,
      and told; a model that draws may well say something else the second time. Nor is an image outside the box, or
      outside the ball of an attack that has a `geometry` and a `radius`, as all of this package do. Logits that are
      not finite are a wrong prediction, and told.

    Raises:
      ValueError: for images outside [0, 1], labels that do not fit, a model that gives no logits `[batch, class]`,
        clean logits that are not finite, a suite without attacks, an attack that returns other shapes, a file of
        another evaluation or of several processes, or a model that draws under an attack that is no `Search`.
      OSError: if the file cannot be written, before anything is attacked.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import attacks, geometry
      >>> logits = lambda x: jnp.concatenate([0.5 - x, x - 0.5], 1)
      >>> attack = attacks.pgd(geometry.linf(), 0.35, steps=5)
      >>> images, labels = jnp.array([[0.2], [0.9]]), jnp.array([0, 1])
      >>> found = attacks.evaluate(jax.random.key(0), logits, images, labels, {"pgd": attack}, batch_size=2)
      >>> found.clean_accuracy, found.robust_accuracy
      (1.0, 0.5)
    """
    attacks = _named(suite)
    if not hasattr(key, "dtype"):
        raise ValueError(f"key must be one of jax.random.key, got {key!r}")
    images, labels = _checked(images, labels)
    if file is not None and jax.process_count() > 1:
        raise ValueError(f"file must be None among {jax.process_count()} processes, got {file}: one alone keeps it")
    check_counts(batch_size=batch_size)
    for name, attack in attacks.items():
        if isinstance(logits_fn, Randomized) and not isinstance(attack, Search):
            raise ValueError(f"{name} cannot attack a model that draws: take attacks.apgd(..., draws=20)")
    asking, attacking, again = jax.random.split(key, 3)
    places = places_for(min(batch_size, len(images)))
    classes = check_model(logits_fn, np.resize(images, (places.size, *images.shape[1:])))
    if labels.max() >= classes:
        raise ValueError(f"labels must lie in [0, {classes}), the classes of the logits, got {labels.max()}")
    logits_fn = replicated(logits_fn if isinstance(logits_fn, Randomized) else as_argument(logits_fn), places)
    numbers = np.arange(len(images))

    logits = np.concatenate([part for _, part in predicted(asking, logits_fn, images, numbers, places)])
    if not np.isfinite(logits).all():
        raise ValueError(
            f"logits must be finite, got {np.sum(~np.isfinite(logits).all(1))} examples where they are not"
        )
    clean = logits.argmax(1) == labels
    averaged = all(isinstance(attack, Search) and attack.draws > 1 for attack in attacks.values())
    told: list[str] = []
    few, theirs = images[: places.size], labels[: places.size]
    slopes = first_slopes(asking, logits_fn, few, theirs) if check or file is not None else None
    if check:
        told += before_attacks(asking, logits_fn, few, clean[: len(few)], logits, slopes, averaged)
    mark = "" if file is None else fingerprint(key, images, labels, attacks, logits_fn, classes)
    record = EvaluationFile(file, mark, len(attacks), logits, slopes, clean, images)
    for number, (name, attack) in enumerate(attacks.items()):
        if record.finished > number:
            continue
        begun = time.perf_counter()
        previous = clean if number == 0 else record.correct[number - 1]
        given = numbers[previous & (record.next_run >= 0)]
        total, robust = int(previous.sum()), int(previous.sum() - (record.broken & previous).sum())
        settled = total - len(given)
        own = jax.random.fold_in(attacking, number)
        some = places_for(fitting(places.size, len(given)))
        with _compiling() as spent:
            for found in (
                searched(attack, own, logits_fn, images, labels, logits, given, record.next_run, some)
                if isinstance(attack, Search)
                else attacked(attack, own, logits_fn, images, labels, given, some)
            ):
                for one in found:
                    record.questions[number] += one.questions
                    record.next_run[one.example] = -1 if one.settled else one.run
                    if one.broken:
                        record.broken[one.example], record.adversarial[one.example] = True, one.image
                settled, robust = settled + sum(one.settled for one in found), robust - sum(one.broken for one in found)
                if progress is not None:
                    progress(Standing(name, settled, total, robust, len(images)))
                record.keep()
            record.told += _rechecked(record, attack, name, again, logits_fn, images, labels, numbers[previous], places)
        record.finish(previous, time.perf_counter() - begun - sum(spent), sum(spent))
    told += record.told
    if check:
        blind = [isinstance(attack, Search) and attack.loss is None for attack in attacks.values()]
        told += after_attacks(list(attacks), blind, record.correct)
    for line in told:
        warnings.warn(line, stacklevel=2)
    return Robustness(
        names=tuple(attacks),
        clean=clean,
        correct=record.correct,
        adversarial=record.adversarial,
        questions=record.questions,
        seconds=record.seconds,
        compile_seconds=record.compile_seconds,
        warnings=tuple(told),
    )


@contextlib.contextmanager
def _compiling() -> Iterator[list[float]]:
    """Seconds that JAX spends on compiling meanwhile, in the list that it gives."""
    spent: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            spent.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield spent
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def _named(suite: Suite | Attack) -> dict[str, Attack]:
    if isinstance(suite, Mapping):
        named = dict(suite)
    else:
        attacks = list(suite) if isinstance(suite, Sequence) and not isinstance(suite, str) else [suite]
        named = {}
        for number, attack in enumerate(attacks):
            name = getattr(attack, "name", None) or f"attack {number}"
            # Of one name several times, later ones get a number.
            while name in named:
                name = f"{name} {number}"
            named[name] = attack
    if not named:
        raise ValueError("suite must hold an attack, got none")
    for name, attack in named.items():
        if not callable(attack):
            raise ValueError(f"suite must be attacks, such as attacks.autoattack(...), got {attack!r} for {name}")
    return named


def _checked(images: Array | np.ndarray, labels: Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images, labels = gathered(images), gathered(labels)
    if images.ndim == 0 or labels.ndim == 0:
        raise ValueError(f"images must be [example, ...] and labels [example], got {images.shape} and {labels.shape}")
    if len(images) == 0:
        raise ValueError("images must be at least one, got none")
    if labels.shape != (len(images),):
        raise ValueError(f"labels must be [{len(images)}], one for each image, got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"labels must be classes, integers from 0, got {labels.dtype} from {labels.min()}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}: divide by 255")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images must lie in [0, 1], got {images.min()} to {images.max()}: leave normalization to logits_fn"
        )
    # What is measured afterwards must be what was attacked: rounding to the device's precision comes first.
    return images.astype(jax.dtypes.canonicalize_dtype(at_least_float32(images.dtype))), labels.astype(np.int32)


def _rechecked(
    record: EvaluationFile,
    attack: Attack,
    name: str,
    key: Key,
    logits_fn: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    given: np.ndarray,
    places: Places,
) -> list[str]:
    """Ask once more about what an attack broke; take back what does not hold, and tell of it."""
    claimed, faults = given[record.broken[given]], []
    ball, radius = getattr(attack, "geometry", None), getattr(attack, "radius", math.inf)
    if ball is not None and math.isfinite(radius):
        sizes = _norms(ball, record.adversarial[claimed], images[claimed], places.size)
        faults.append(("outside the radius", claimed[~(sizes <= radius * (1 + TOLERANCE))]))
    low, high = (np.asarray([f(record.adversarial[n]) for n in claimed]) for f in (np.min, np.max))
    faults.append(("outside [0, 1]", claimed[~((low >= 0) & (high <= 1))]))
    right, blank = [claimed[:0]], 0
    for numbers, logits in predicted(key, logits_fn, record.adversarial, claimed, places):
        right.append(numbers[~np.asarray(misclassified(jnp.asarray(logits), jnp.asarray(labels[numbers])))])
        blank += int(np.sum(~np.isfinite(logits).all(axis=1)))
    faults.append((AGAIN, np.concatenate(right)))
    told = []
    if blank:
        told.append(f"{name}: logits of {blank} images were not finite, which counts as wrong: mend the model")
    for fault, examples in faults:
        record.broken[examples], record.adversarial[examples] = False, images[examples]
        if len(examples):
            told.append(
                f"{name}: {len(examples)} images were {fault}, and are not counted: mend the attack or the model"
            )
    return told


def _norms(geometry: Geometry, adversarial: np.ndarray, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Norms of perturbations, in float64, so many at a time."""
    with jax.enable_x64(True):
        found = [
            np.asarray(_norms_of(geometry, adversarial[first : first + batch_size], images[first : first + batch_size]))
            for first in range(0, len(images), batch_size)
        ]
    return np.concatenate([np.zeros(0), *found])


@partial(jax.jit, static_argnums=0)
def _norms_of(geometry: Geometry, adversarial: Array, images: Array) -> Array:
    return jax.vmap(geometry.norm)(adversarial.astype(jnp.float64) - images.astype(jnp.float64))
