"""A batch of fixed size in which examples take places, and leave them as soon as nothing is to be gained.

`searched` drives a `Search`: an example leaves its place when it is broken or its run is over, and the next one takes
it. Programs have one shape, so that nothing compiles anew; places are shared evenly by all devices.
"""

import math
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust.attacks.accuracy import gathered
from jaxrobust.attacks.pgd import repeat
from jaxrobust.attacks.search import (
    Randomized,
    Search,
    SearchState,
    answer_logits,
    begin,
    chosen,
    draw_keys,
    misclassified,
    step,
)
from jaxrobust.typing import Array, Attack, Key, Predict, PyTree

# Questions between two looks at who is done: a look costs a round trip to the host, a late one some questions.
WITH_GRADIENT, WITHOUT = 5, 20


class Places(NamedTuple):
    """The places of a batch, the same number on every device."""

    size: int
    sharding: NamedSharding


def places_for(batch_size: int) -> Places:
    """So many places, or a few more, for there are equally many on each device."""
    devices = jax.devices()
    size = -(-batch_size // len(devices)) * len(devices)
    return Places(size, NamedSharding(Mesh(np.array(devices), ("example",)), P("example")))


def fitting(batch_size: int, count: int) -> int:
    """The batch's size, halved as long as so many examples fill no more than half of it."""
    while batch_size // 2 >= max(count, 1):
        batch_size //= 2
    return batch_size


def replicated(tree: PyTree, places: Places) -> PyTree:
    """Arrays of one device laid on all that share the places; everything else as it is."""
    everywhere = NamedSharding(places.sharding.mesh, P())

    def laid(leaf: Any) -> Any:
        single = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) < len(everywhere.device_set)
        return jax.device_put(leaf, everywhere) if single else leaf

    return jax.tree.map(laid, tree)


class Found(NamedTuple):
    """What became of an example under an attack; run is the next one to do, where it is not settled."""

    example: int
    run: int
    settled: bool
    broken: bool
    image: np.ndarray | None
    questions: int


def predicted(
    key: Key, logits_fn: Predict, images: np.ndarray, numbers: np.ndarray, places: Places
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of examples and their logits, batch by batch; the last one is filled up with its first example."""
    for first in range(0, len(numbers), places.size):
        part = numbers[first : first + places.size]
        rows = np.resize(part, places.size)
        answers = _logits(logits_fn, keys_of(key, jnp.asarray(rows)), jax.device_put(images[rows], places.sharding))
        yield part, gathered(answers)[: len(part)]


@jax.jit
def _logits(logits_fn: Predict, keys: Array, images: Array) -> Array:
    return answer_logits(logits_fn, keys, images)


@jax.jit
def keys_of(key: Key, numbers: Array) -> Array:
    """`[batch]` keys of the examples of these numbers."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def searched(
    search: Search,
    key: Key,
    logits_fn: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    given: np.ndarray,
    next_run: np.ndarray,
    places: Places,
) -> Iterator[list[Found]]:
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
        return put(keys_of(key, jnp.asarray(rows))), put(images[rows]), put(labels[rows]), put(logits[rows]), begun

    count = WITHOUT if search.loss is None else WITH_GRADIENT
    keys, clean, classes, known, begun = held()
    states = put(idle(search, keys, clean, classes, known, begun))
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
        states, asked, done, broken = advance(
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
            found.append(Found(example, run + 1, settled, lost, picture, int(questions[place])))
            holds[place] = -1
        yield found


@partial(jax.jit, static_argnums=0)
def idle(search: Search, keys: Array, images: Array, labels: Array, logits: Array, start: Array | None) -> SearchState:
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
def advance(
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
    each = (search.draws if drawing and search.loss is not None else 1) + (search.look is not None)

    def over(states: SearchState) -> Array:
        # Without a radius the closest image is wanted, not the first.
        return states.done | states.broken if math.isfinite(search.radius) else states.done

    draws = draw_keys(keys, runs) if drawing else keys

    def ask(carry: tuple[SearchState, Array]) -> tuple[SearchState, Array]:
        states, asked = carry
        states = states._replace(done=over(states))
        own = jax.vmap(jax.random.fold_in)(draws, asked) if drawing else keys
        questions = (~states.done).astype(jnp.int32) * jnp.int32(each)
        return step(search, logits_fn, own, states, images, labels), asked + questions

    states, asked = repeat(ask, (states, asked), count)
    return states, asked, over(states), states.broken


def attacked(
    attack: Attack,
    key: Key,
    logits_fn: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    given: np.ndarray,
    places: Places,
) -> Iterator[list[Found]]:
    """Run an attack that is no search, batch by batch."""
    put = partial(jax.device_put, device=places.sharding)
    for first in range(0, len(given), places.size):
        part = given[first : first + places.size]
        rows = np.resize(part, places.size)
        keys = put(keys_of(key, jnp.asarray(rows)))
        attacked, wrong = map(gathered, _whole(attack, logits_fn, keys, put(images[rows]), put(labels[rows])))
        yield [Found(int(n), 1, True, bool(wrong[at]), attacked[at], 0) for at, n in enumerate(part)]


@partial(jax.jit, static_argnums=0)
def _whole(attack: Attack, logits_fn: Predict, keys: Array, images: Array, labels: Array) -> tuple[Array, Array]:
    attacked = attack(keys, logits_fn, images, labels)
    if attacked.shape != images.shape:
        raise ValueError(f"an attack must return images of shape {images.shape}, got shape {attacked.shape}")
    return attacked, misclassified(answer_logits(logits_fn, keys, attacked), labels)
