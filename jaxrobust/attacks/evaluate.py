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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust.attacks.accuracy import gathered
from jaxrobust.attacks.checks import after_attacks, before_attacks
from jaxrobust.attacks.evaluation_file import EvaluationFile, fingerprint
from jaxrobust.attacks.pgd import repeat
from jaxrobust.attacks.search import Randomized, Search, SearchState, answer_logits, begin, chosen, folded, step
from jaxrobust.geometry import Geometry
from jaxrobust.typing import Array, Attack, Key, Predict

Suite: TypeAlias = Mapping[str, Attack] | Sequence[Attack]
TOLERANCE, AGAIN = 1e-6, "classified rightly when asked again"
# Questions between two looks at who is done: a look costs a round trip to the host, a late one some questions.
WITH_GRADIENT, WITHOUT = 5, 20


class Robustness(NamedTuple):
    """What an evaluation found.

    Attributes:
      names: of the attacks, in order.
      clean: `[example]` bool, right on the clean image.
      correct: `[attack, example]` bool, right on the clean image and after this attack and all before it.
      adversarial: `[example, ...]`, a misclassified image where one was found, else the clean one.
      questions: `[attack]`, how many images the model was asked about, with a gradient or without; 0 for an attack that
        is no `Search`.
      seconds: `[attack]` of wall clock, compilation left out.
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


class _Found(NamedTuple):
    """What became of an example under an attack; run is the next one to do, where it is not settled."""

    example: int
    run: int
    settled: bool
    broken: bool
    image: np.ndarray | None
    questions: int


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
      images: `[example, ...]` in [0, 1].
      labels: `[example]` integers in [0, class).
      suite: name -> attack, as `autoattack` gives it; or a sequence of attacks, or one.
      batch_size: images that the model is asked about at once, over all devices; changes no result.
      file: where the state is kept; what a killed evaluation had settled is read from it. None keeps nothing.
      progress: called whenever examples are settled.
      check: whether to look for what makes a result doubtful: softmax outputs, gradients of zero, batch statistics,
        randomness. It costs a few questions of one batch.

    Returns:
      A `Robustness`. Where images lie in the suite's order does not matter to any of them.

    Raises:
      ValueError: for images outside [0, 1], labels that do not fit, logits that are not finite, or a file of another
        evaluation.

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
    images, labels = _checked(images, labels)
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    if not isinstance(logits_fn, (jax.tree_util.Partial, Randomized)):
        logits_fn = jax.tree_util.Partial(logits_fn)
    places = _places(min(batch_size, len(images)))
    numbers = np.arange(len(images))

    logits = np.concatenate([part for _, part in _predicted(key, logits_fn, images, numbers, places)])
    if not np.isfinite(logits).all():
        raise ValueError(
            f"logits must be finite, got {np.sum(~np.isfinite(logits).all(1))} examples where they are not"
        )
    if labels.max() >= logits.shape[1]:
        raise ValueError(f"labels must lie in [0, {logits.shape[1]}), the classes of the logits, got {labels.max()}")
    clean = logits.argmax(1) == labels
    told = before_attacks(key, logits_fn, images[: places.size], labels[: places.size], logits) if check else []

    mark = fingerprint(key, images, labels, clean, [f"{name} {_described(attack)}" for name, attack in attacks.items()])
    record = EvaluationFile(file, mark, len(attacks), clean, images)
    for number, (name, attack) in enumerate(attacks.items()):
        if record.finished > number:
            continue
        begun = time.perf_counter()
        previous = clean if number == 0 else record.correct[number - 1]
        given = numbers[previous & (record.next_run >= 0)]
        total, robust = int(previous.sum()), int(previous.sum() - (record.broken & previous).sum())
        settled = total - len(given)
        own = jax.random.fold_in(key, number)
        with _compiling() as spent:
            for found in (
                _searched(attack, own, logits_fn, images, labels, logits, given, record.next_run, places)
                if isinstance(attack, Search)
                else _attacked(attack, own, logits_fn, images, labels, given, places)
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
            told += _rechecked(record, attack, name, key, logits_fn, images, labels, numbers[previous], places)
        record.finish(previous, time.perf_counter() - begun - sum(spent), sum(spent))
    if check:
        told += after_attacks(list(attacks), record.correct)
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


class _Places(NamedTuple):
    """The places of a batch, the same number on every device."""

    size: int
    sharding: NamedSharding


def _places(batch_size: int) -> _Places:
    devices = jax.devices()
    size = -(-batch_size // len(devices)) * len(devices)
    return _Places(size, NamedSharding(Mesh(np.array(devices), ("example",)), P("example")))


def _named(suite: Suite | Attack) -> dict[str, Attack]:
    if isinstance(suite, Mapping):
        return dict(suite)
    attacks = list(suite) if isinstance(suite, Sequence) else [suite]
    names = [getattr(attack, "name", None) or f"attack {number}" for number, attack in enumerate(attacks)]
    # Of one name several times, later ones get a number.
    unique = [name if names.index(name) == at else f"{name} {at}" for at, name in enumerate(names)]
    return dict(zip(unique, attacks, strict=True))


def _described(attack: Attack) -> str:
    """What tells an attack from another of its name."""
    return f"{attack.geometry.name} {attack.radius}" if isinstance(attack, Search) else ""


def _checked(images: Array | np.ndarray, labels: Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images, labels = gathered(images), gathered(labels)
    if len(images) == 0 or labels.shape != (len(images),):
        raise ValueError(f"labels must be [{len(images)}], one for each image of at least one, got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"labels must be classes, integers from 0, got {labels.dtype} from {labels.min()}")
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}: divide by 255")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images must lie in [0, 1], got {images.min()} to {images.max()}: leave normalization to logits_fn"
        )
    return images, labels


def _predicted(
    key: Key, logits_fn: Predict, images: np.ndarray, numbers: np.ndarray, places: _Places
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of examples and their logits, batch by batch; the last one is filled up with its first example."""
    for first in range(0, len(numbers), places.size):
        part = numbers[first : first + places.size]
        rows = np.resize(part, places.size)
        answers = _logits(logits_fn, _keys(key, jnp.asarray(rows)), jax.device_put(images[rows], places.sharding))
        yield part, gathered(answers)[: len(part)]


@jax.jit
def _logits(logits_fn: Predict, keys: Array, images: Array) -> Array:
    return answer_logits(logits_fn, keys, images)


@jax.jit
def _keys(key: Key, numbers: Array) -> Array:
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def _searched(
    search: Search,
    key: Key,
    logits_fn: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    given: np.ndarray,
    next_run: np.ndarray,
    places: _Places,
) -> Iterator[list[_Found]]:
    """Drive a search: what became of examples, as soon as it is known."""
    runs = search.runs(logits.shape[1])
    queue = deque((int(example), int(next_run[example])) for example in given)
    if not queue:
        return
    put = partial(jax.device_put, device=places.sharding)
    holds, run_of = np.full(places.size, -1), np.zeros(places.size, np.int32)
    start = None if search.start is None else np.asarray(search.start, images.dtype)
    if start is not None and start.shape != images.shape:
        raise ValueError(f"start must be recorded images of shape {images.shape}, got {start.shape}")

    def held() -> tuple[Any, ...]:
        rows = np.maximum(holds, 0)
        begun = None if start is None else put(start[rows])
        return put(_keys(key, jnp.asarray(rows))), put(images[rows]), put(labels[rows]), put(logits[rows]), begun

    count = WITHOUT if search.loss is None else WITH_GRADIENT
    keys, clean, classes, known, begun = held()
    states = put(_idle(search, keys, clean, classes, known, begun))
    asked = put(np.zeros(places.size, np.int32))
    while queue or (holds >= 0).any():
        free = np.flatnonzero(holds < 0)
        # Filling up costs a program of its own: not for every place that falls free.
        if queue and (len(free) * 8 >= places.size or len(free) >= len(queue)):
            filled = free[: len(queue)]
            for place in filled:
                holds[place], run_of[place] = queue.popleft()
            keys, clean, classes, known, begun = held()
            fresh = np.isin(np.arange(places.size), filled)
            states, asked = _enter(search, states, asked, keys, clean, classes, known, put(run_of), begun, put(fresh))
        states, asked, done, broken = _advance(
            search, count, logits_fn, keys, put(run_of), states, asked, clean, classes
        )
        over, hurt, questions = gathered(done), gathered(broken), gathered(asked)
        left = np.flatnonzero((holds >= 0) & over)
        if len(left) == 0:
            continue
        pictures = gathered(states.found) if hurt[left].any() else None
        found = []
        for place in left:
            example, run, lost = int(holds[place]), int(run_of[place]), bool(hurt[place])
            settled = lost or run + 1 >= runs
            if not settled:
                queue.append((example, run + 1))
            picture = pictures[place] if lost and pictures is not None else None
            found.append(_Found(example, run + 1, settled, lost, picture, int(questions[place])))
            holds[place] = -1
        yield found


@partial(jax.jit, static_argnums=0)
def _idle(search: Search, keys: Array, images: Array, labels: Array, logits: Array, start: Array | None) -> SearchState:
    """States of empty places: nothing to ask."""
    runs = jnp.zeros(len(images), jnp.int32)
    states = jax.eval_shape(partial(begin, search), keys, images, labels, logits, runs, start)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), states)
    return empty._replace(done=jnp.ones(len(images), bool))


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _enter(
    search: Search,
    states: SearchState,
    asked: Array,
    keys: Array,
    images: Array,
    labels: Array,
    logits: Array,
    runs: Array,
    start: Array | None,
    fresh: Array,
) -> tuple[SearchState, Array]:
    """Begin anew in fresh places."""
    begun = begin(search, keys, images, labels, logits, runs, start)
    return jax.tree.map(lambda new, old: chosen(fresh, new, old), begun, states), jnp.where(fresh, 0, asked)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(5, 6))
def _advance(
    search: Search,
    count: int,
    logits_fn: Predict,
    keys: Array,
    runs: Array,
    states: SearchState,
    asked: Array,
    images: Array,
    labels: Array,
) -> tuple[SearchState, Array, Array, Array]:
    """So many questions at every place that is not done or broken."""
    drawing = isinstance(logits_fn, Randomized)
    draws = folded(jax.vmap(jax.random.fold_in)(keys, runs), 1) if drawing else keys

    def ask(carry: tuple[SearchState, Array]) -> tuple[SearchState, Array]:
        states, asked = carry
        states = states._replace(done=states.done | states.broken)
        own = jax.vmap(jax.random.fold_in)(draws, asked) if drawing else keys
        questions = (~states.done).astype(jnp.int32) * jnp.int32(1 if search.look is None else 2)
        return step(search, logits_fn, own, states, images, labels), asked + questions

    states, asked = repeat(ask, (states, asked), count)
    return states, asked, states.done | states.broken, states.broken


def _attacked(
    attack: Attack,
    key: Key,
    logits_fn: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    given: np.ndarray,
    places: _Places,
) -> Iterator[list[_Found]]:
    """Run an attack that is no search, batch by batch."""
    put = partial(jax.device_put, device=places.sharding)
    for first in range(0, len(given), places.size):
        part = given[first : first + places.size]
        rows = np.resize(part, places.size)
        keys = put(_keys(key, jnp.asarray(rows)))
        attacked, wrong = map(gathered, _whole(attack, logits_fn, keys, put(images[rows]), put(labels[rows])))
        yield [_Found(int(n), 1, True, bool(wrong[at]), attacked[at], 0) for at, n in enumerate(part)]


@partial(jax.jit, static_argnums=0)
def _whole(attack: Attack, logits_fn: Predict, keys: Array, images: Array, labels: Array) -> tuple[Array, Array]:
    attacked = attack(keys, logits_fn, images, labels)
    return attacked, jnp.argmax(answer_logits(logits_fn, keys, attacked), axis=-1) != labels


def _rechecked(
    record: EvaluationFile,
    attack: Attack,
    name: str,
    key: Key,
    logits_fn: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    given: np.ndarray,
    places: _Places,
) -> list[str]:
    """Ask once more about what an attack broke; take back what does not hold, and tell of it."""
    claimed, faults = given[record.broken[given]], []
    if isinstance(attack, Search) and math.isfinite(attack.radius):
        sizes = _norms(attack.geometry, record.adversarial[claimed], images[claimed])
        far = claimed[sizes > attack.radius * (1 + TOLERANCE)]
        faults.append(("outside the radius", far))
    low, high = (np.asarray([f(record.adversarial[n]) for n in claimed]) for f in (np.min, np.max))
    faults.append(("outside [0, 1]", claimed[~((low >= 0) & (high <= 1))]))
    right = [n[at.argmax(1) == labels[n]] for n, at in _predicted(key, logits_fn, record.adversarial, claimed, places)]
    faults.append((AGAIN, np.concatenate([claimed[:0], *right])))
    told = []
    for fault, examples in faults:
        record.broken[examples], record.adversarial[examples] = False, images[examples]
        # A model that draws may well say something else the second time.
        if len(examples) and not (fault == AGAIN and isinstance(logits_fn, Randomized)):
            told.append(
                f"{name}: {len(examples)} images were {fault}, and are not counted: mend the attack or the model"
            )
    return told


def _norms(geometry: Geometry, adversarial: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Norms of perturbations, in float64."""
    with jax.enable_x64(True):
        difference = jnp.asarray(adversarial, jnp.float64) - jnp.asarray(images, jnp.float64)
        return np.asarray(jax.vmap(geometry.norm)(difference)) if len(difference) else np.zeros(0)
