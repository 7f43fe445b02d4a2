r"""An attack as a search: it names a point, is told what the model says of it, and names the next.

A search is written for ONE example and never calls the model:

    state = init(key, image, label, logits, run)    logits [class] of the clean image; run: which restart, or target
    state = tell(state, image, label, answer)       answer: logits at state.point, the loss there and its gradient

Whoever drives it asks the model about many examples at once and maps `tell` over them. Two drivers exist: calling a
`Search`, a pure function like any other attack, which goes through every run to its end; and `attacks.evaluate`, which
takes examples out as soon as they are broken and fills their places. What happens to an example does not depend on
which others are beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxrobust.attacks.pgd import per_example_keys
from jaxrobust.attacks.settings import check_classified, check_images
from jaxrobust.geometry import Geometry
from jaxrobust.precision import widened
from jaxrobust.typing import Array, Predict, PyTree

# Runs of a search are numbered from 0: what an example's key gives under this number is the model's.
OF_THE_MODEL = 2**32 - 1


class Answer(NamedTuple):
    """What the model says of one point.

    Attributes:
      logits: `[class]`.
      value: the search's loss there, scalar or `[m]`; None for a search without one.
      gradient: of each value with respect to the point, its shape or `[m, ...]`, 0 where it is not finite; None for a
        search without a loss.
    """

    logits: Array
    value: Any
    gradient: Any


class SearchState(NamedTuple):
    """Where a search of one example stands.

    Attributes:
      point: what the model is asked about next, in [0, 1].
      found: a misclassified image within the radius where `broken`, else the best one so far, within the radius too.
      broken: bool, whether such an image was found.
      done: bool, whether the run has nothing left to ask; a driver leaves such a state alone.
      memory: what the method keeps, any pytree.
    """

    point: Array
    found: Array
    broken: Array
    done: Array
    memory: Any


ValueOf: TypeAlias = Callable[[Any, Array, Array], Array]


@dataclass(frozen=True, eq=False)
class Search:
    """An attack that can be driven step by step; called, it is an `Attack` like any other.

    Attributes:
      name: for people and tables.
      geometry: the norm that bounds it.
      radius: largest norm of a perturbation.
      init: `(key, image, label, logits, run) -> SearchState` for one example; run is a traced int32.
      tell: `(state, image, label, answer) -> SearchState` for one example.
      look: `(state, image, label, logits [class]) -> SearchState` for one example, told after `tell` what the model
        makes of the new point, without a gradient; None for a search that learns it from the next answer.
      loss: `(memory, logits [class], label) -> scalar or [m]`, whose gradient at the point it wants; None for a search
        that goes by logits alone.
      runs: `(classes) -> how many runs an example gets`, one after another until one breaks it.
      draws: how many gradients of a `Randomized` model are averaged for an answer.
      start: `[batch, ...]` images at which the runs begin in place of random ones, to replay a recorded search; given
        to `init` as its last argument.
    """

    name: str
    geometry: Geometry
    radius: float
    init: Callable[..., SearchState]
    tell: Callable[[SearchState, Array, Array, Answer], SearchState]
    look: Callable[[SearchState, Array, Array, Array], SearchState] | None = None
    loss: ValueOf | None = None
    runs: Callable[[int], int] = lambda classes: 1
    draws: int = 1
    start: Array | None = None

    def __call__(self, keys: Array, logits_fn: Predict, images: Array, labels: Array) -> Array:
        """Attack a batch; every run of every example that is not broken goes to its end.

        Args:
          keys: one key, or `[batch]`; under one key, example i uses `fold_in(key, i)`.
          logits_fn: the classifier in evaluation mode, `[batch, ...] -> [batch, class]`, or a `Randomized`.
          images: `[batch, ...]` of floating point in [0, 1]; what lies outside is not brought in where it is
            misclassified itself.
          labels: `[batch]` integers in `[0, class)`.

        Returns:
          `[batch, ...]`: a misclassified image where one was found (the clean one where it is misclassified itself),
          else what the first run held best; each in [0, 1] and within the radius. A prediction from logits that
          are not finite is wrong whatever the label.

        Raises:
          ValueError: for another shape or dtype of images, labels, logits or recorded starts.
        """
        check_images(images)
        keys = per_example_keys(keys, len(images))
        if len(images) == 0:
            return images
        if self.start is not None and jnp.shape(self.start) != images.shape:
            raise ValueError(f"start must be images of shape {images.shape}, got shape {jnp.shape(self.start)}")
        start = None if self.start is None else jnp.asarray(self.start, images.dtype)
        logits = answer_logits(logits_fn, draw_keys(keys, -1), images)
        check_classified(logits, images, labels)
        wrong = misclassified(logits, labels)

        def one_run(carry: tuple[Array, Array], run: Array) -> tuple[tuple[Array, Array], None]:
            found, broken = carry
            runs = jnp.full(len(images), run)
            state = begin(self, keys, images, labels, logits, runs, start)
            state = state._replace(done=state.done | broken)
            draws = draw_keys(keys, run)

            def more(carry: tuple[SearchState, Array]) -> Array:
                return ~jnp.all(carry[0].done)

            def ask(carry: tuple[SearchState, Array]) -> tuple[SearchState, Array]:
                state, count = carry
                own = folded(draws, count) if isinstance(logits_fn, Randomized) else draws
                return step(self, logits_fn, own, state, images, labels), count + 1

            state, _ = jax.lax.while_loop(more, ask, (state, jnp.int32(0)))
            better = state.broken | (run == 0)
            kept = chosen(better & ~broken, state.found, found)
            return (kept, broken | state.broken), None

        runs = jnp.arange(self.runs(logits.shape[-1]), dtype=jnp.int32)
        (found, _), _ = jax.lax.scan(one_run, (images, wrong), runs)
        return found


@dataclass(frozen=True, eq=False)
class Randomized:
    """A classifier that draws: random crops, dropout at test time, noise.

    Attributes:
      draw: `(keys [batch], images [batch, ...]) -> logits [batch, class]`.
    """

    draw: Callable[[Array, Array], Array]

    def __post_init__(self) -> None:
        if callable(self.draw) and not isinstance(self.draw, jax.tree_util.Partial):
            object.__setattr__(self, "draw", jax.tree_util.Partial(self.draw))


jax.tree_util.register_dataclass(Randomized, data_fields=["draw"], meta_fields=[])


def begin(
    search: Search,
    keys: Array,
    images: Array,
    labels: Array,
    logits: Array,
    runs: Array,
    start: Array | None = None,
) -> SearchState:
    """States at the start of a run, `[batch]` of each.

    Args:
      search: the method.
      keys: `[batch]`, of the examples; run r of an example begins from `fold_in(key, r)`.
      images: `[batch, ...]`, clean.
      labels: `[batch]`.
      logits: `[batch, class]` of the clean images.
      runs: `[batch]` int32, the number of each example's run.
      start: `[batch, ...]` recorded images to begin at, or None.

    Returns:
      A `SearchState` with a leading axis of examples.
    """
    keys = jax.vmap(jax.random.fold_in)(keys, runs)
    given = () if start is None else (start,)
    return jax.vmap(search.init)(keys, images, labels, logits, runs, *given)


def step(
    search: Search, logits_fn: Predict, keys: Array, states: SearchState, images: Array, labels: Array
) -> SearchState:
    """Ask the model about every example's point, tell the search, and let it look; what is done stays as it is.

    Args:
      search: the method.
      logits_fn: the classifier, or a `Randomized`.
      keys: `[batch]`, for a `Randomized` alone.
      states: `[batch]` of each leaf.
      images: `[batch, ...]`, clean.
      labels: `[batch]`.

    Returns:
      The next states.
    """
    # Whoever looks must not see the draw again that the gradient was taken under.
    asking, looking = (folded(keys, n) if isinstance(logits_fn, Randomized) else keys for n in (0, 1))
    answers = _answers(search, logits_fn, asking, states, labels)
    finite = jax.tree.map(lambda slope: jnp.where(jnp.isfinite(slope), slope, 0), answers.gradient)
    told = jax.vmap(search.tell)(states, images, labels, answers._replace(gradient=finite))
    if search.look is not None:
        told = jax.vmap(search.look)(told, images, labels, answer_logits(logits_fn, looking, told.point))
    return jax.tree.map(lambda new, old: chosen(~states.done, new, old), told, states)


def answer_logits(logits_fn: Predict | Randomized, keys: Array, points: Array) -> Array:
    """Logits `[batch, class]`, in float32 at least, of a classifier that may draw."""
    return widened(logits_fn.draw(keys, points) if isinstance(logits_fn, Randomized) else logits_fn(points))


def misclassified(logits: Array, labels: Array) -> Array:
    """Whether the largest of the logits `[..., class]` is not the label's; where one is not finite, none is.

    Args:
      logits: `[..., class]`.
      labels: `[...]` integers of any width.

    Returns:
      `[...]` bool.
    """
    predictions = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return (predictions != labels.astype(jnp.int32)) | ~jnp.all(jnp.isfinite(logits), axis=-1)


def draw_keys(keys: Array, runs: Array | int) -> Array:
    """`[batch]` keys of what a `Randomized` model draws in a run, apart from those of the search itself; run -1 stands
    for the clean images."""
    own = folded(keys, OF_THE_MODEL)
    return jax.vmap(jax.random.fold_in)(own, jnp.broadcast_to(jnp.asarray(runs, jnp.int32), keys.shape))


def chosen(which: Array, yes: Array, no: Array) -> Array:
    """Row by row, one or the other."""
    return jnp.where(which.reshape(which.shape + (1,) * (yes.ndim - which.ndim)), yes, no)


def folded(keys: Array, number: Array | int) -> Array:
    """`[batch]` keys, each folded with a number."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _answers(search: Search, logits_fn: Predict, keys: Array, states: SearchState, labels: PyTree) -> Answer:
    """Answers `[batch]`: logits of the last draw, and the mean of the draws' gradients."""
    loss = search.loss
    if loss is None:
        return Answer(answer_logits(logits_fn, keys, states.point), None, None)

    def asked(keys: Array) -> Answer:
        def values(points: Array) -> tuple[Array, Array]:
            logits = answer_logits(logits_fn, keys, points)
            return jax.vmap(loss)(states.memory, logits, labels), logits

        value, pull, logits = jax.vjp(values, states.point, has_aux=True)
        if value.ndim == 1:
            return Answer(logits, value, pull(jnp.ones_like(value))[0])
        # One backward pass for each value, for all examples at once.
        rows = jnp.eye(value.shape[1], dtype=value.dtype)
        slopes = jax.vmap(lambda row: pull(jnp.broadcast_to(row, value.shape))[0])(rows)
        return Answer(logits, value, jnp.moveaxis(slopes, 0, 1))

    if search.draws == 1 or not isinstance(logits_fn, Randomized):
        return asked(keys)

    def again(total: Array, number: Array) -> tuple[Array, tuple[Array, Array]]:
        answer = asked(folded(keys, number))
        return total + answer.gradient, (answer.logits, answer.value)

    slope = jax.eval_shape(asked, keys).gradient
    total, (logits, values) = jax.lax.scan(again, jnp.zeros(slope.shape, slope.dtype), jnp.arange(search.draws))
    return Answer(logits[-1], values[-1], total / search.draws)
