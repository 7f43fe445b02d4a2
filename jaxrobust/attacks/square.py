r"""Square: random search by logits alone, one square of pixels at a time.

A window of the best image so far is filled anew, and the change is kept where the margin
:math:`z_y - \max_{j \ne y} z_j` falls. Windows shrink as the search goes on.

    norm   start                                               a window is filled with
    ----   -------------------------------------------------   -------------------------------------------------------
    linf   plus or minus the radius in each column, channel    plus or minus the radius, one sign for each channel
    l2     a grid of bumps, scaled to the radius               a bump on top of what was there, as large as what this
                                                               window and a second one had and what the ball has left;
                                                               the second is emptied, all is scaled to the radius
    l1     a grid of bumps, projected on the ball and the box  the same, times the channels' number; all is projected

Reference: Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a Query-Efficient Black-Box Adversarial Attack
via Random Search", https://arxiv.org/abs/1912.00049, 2020; Croce and Hein, "Mind the Box: l1-APGD for Sparse
Adversarial Attacks on Image Classifiers", https://arxiv.org/abs/2103.01208, 2021 (l1).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.attacks import losses
from jaxrobust.attacks.search import Answer, Search, SearchState, misclassified
from jaxrobust.attacks.settings import check_ball, check_counts
from jaxrobust.attacks.square_bumps import bumps_in_corner, grid_of_bumps, shares, sides
from jaxrobust.geometry import Geometry, project_l1_box, within
from jaxrobust.geometry.norm import divided
from jaxrobust.typing import Array, Key, Shape

NORMS = ("linf", "l2", "l1")
_Start: TypeAlias = Callable[[Key, Array], Array]
"""`(key, image) -> where a run begins`, both `[rows, columns, channels]`."""
_Move: TypeAlias = Callable[[Key, Array, Array, Array], Array]
"""`(key, number of the window, image, found) -> what to ask next`."""


class _Memory(NamedTuple):
    """What a run keeps: its key, how many questions were answered, and the loss at the best image."""

    key: Array
    answered: Array
    highest: Array


def square(
    geometry: Geometry,
    radius: float,
    *,
    queries: int = 5000,
    first_share: float = 0.8,
    rescaled: bool = False,
    restarts: int = 1,
) -> Search:
    """Build Square.

    Every example draws places, signs and turns of its own, from `fold_in(key, question)`; only the sides of the windows
    are the same for all. In the authors' code a batch shares what is drawn, and an example's result depends on the
    others beside it. As there, an image's last row and column are in no window but one as large as the image.

    Args:
      geometry: `linf()`, `l2()` or `l1()`.
      radius: largest norm of a perturbation, in units of the images' range [0, 1].
      queries: questions of a run, the one at its start among them; 5000 in AutoAttack.
      first_share: of the image that the first windows cover, in (0, 1]; 0.8 in AutoAttack.
      rescaled: whether windows shrink over the whole run as they do in 10,000 questions. AutoAttack does not: with
        5,000 the smallest have a share of first_share / 128.
      restarts: runs, one after another until one breaks the example.

    Returns:
      A search of examples `[height, width, channel]`, `[height, width]` or `[feature]`; of features, windows are
      segments. Without a loss: it asks for no gradient.

    Raises:
      ValueError: for another norm or a number out of its range; in a call, for examples of another rank.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import attacks, geometry
      >>> attack = attacks.square(geometry.linf(), 0.25, queries=100)
      >>> logits = lambda images: jnp.stack([images.sum(1) - 1.125, jnp.zeros(len(images))], 1)
      >>> attack(jax.random.key(0), logits, jnp.full((1, 3), 0.5), jnp.array([0])).round(2).tolist()
      [[0.25, 0.25, 0.25]]

    Reference: Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a Query-Efficient Black-Box Adversarial
    Attack via Random Search", https://arxiv.org/abs/1912.00049, 2020 (algorithms 1 to 3).
    """
    check_ball(geometry, radius)
    if geometry.name not in NORMS:
        raise ValueError(f"geometry must be one of {', '.join(NORMS)}, got {geometry.name}: attacks.pgd takes any")
    check_counts(queries=queries, restarts=restarts)
    if not 0 < first_share <= 1:
        raise ValueError(f"first_share must be in (0, 1], got {first_share}")
    share = shares(queries, first_share, rescaled)
    start, move = (_corners if geometry.name == "linf" else _bumps)(geometry, radius, share)

    def init(
        key: Key, image: Array, label: Array, logits: Array, run: Array, begun: Array | None = None
    ) -> SearchState:
        del run
        clean = image.reshape(_frame(image.shape))
        if begun is None:
            point = start(jax.random.fold_in(key, 0), clean).reshape(image.shape)
        else:
            point = within(geometry, image, begun, radius)
        wrong = misclassified(logits, label)
        memory = _Memory(key, jnp.int32(0), jnp.asarray(-jnp.inf, logits.dtype))
        return SearchState(point, jnp.where(wrong, image, point), wrong, wrong, memory)

    def tell(state: SearchState, image: Array, label: Array, answer: Answer) -> SearchState:
        key, answered, highest = state.memory
        loss = losses.margin(answer.logits[None], label[None])[0]
        # In a tie the label may still be the prediction: better than any image before, but not broken.
        broken = misclassified(answer.logits, label)
        better = (loss > highest) | broken
        found = jnp.where(better, state.point, state.found)
        frame = _frame(image.shape)
        moved = move(jax.random.fold_in(key, answered + 1), answered, image.reshape(frame), found.reshape(frame))
        memory = _Memory(key, answered + 1, jnp.where(better, loss, highest))
        return SearchState(moved.reshape(image.shape), found, broken, broken | (answered + 1 >= queries), memory)

    return Search("square", geometry, radius, init, tell, runs=lambda classes: restarts)


def _corners(geometry: Geometry, radius: float, share: np.ndarray) -> tuple[_Start, _Move]:
    """Of l-infinity: every pixel is moved by plus or minus the radius."""
    del geometry

    def start(key: Key, image: Array) -> Array:
        sign = jax.random.rademacher(key, (1, *image.shape[1:]), image.dtype)
        return _moved(image, radius * sign)

    def move(key: Key, number: Array, image: Array, found: Array) -> Array:
        side = _at(sides(share, image.shape, bumps=False), number)
        drawn = jax.random.uniform(key, (2 + image.shape[2],), jnp.float32)
        window = _window(_corner(drawn[:2], side, image.shape), side, image.shape)[..., None]
        # Adding twice the radius and going back into the ball ends at its border, wherever the pixel was.
        return jnp.where(window, _moved(image, radius * _sign(drawn[2:], image)), found)

    return start, move


def _bumps(geometry: Geometry, radius: float, share: np.ndarray) -> tuple[_Start, _Move]:
    """Of l2 and l1: bumps, and what one window gains another loses."""
    p = 2 if geometry.name == "l2" else 1

    def mass(x: Array) -> Array:
        """Of each channel `[channels, rows, columns]`."""
        return jnp.sum(jnp.abs(x) ** p, axis=(1, 2), keepdims=True)

    def size(mass: Array) -> Array:
        return jnp.sqrt(mass) if p == 2 else mass

    def bring_in(image: Array, delta: Array) -> Array:
        if p == 1:
            return project_l1_box(image, image + delta, radius * (1 - 1e-6))
        return _moved(image, delta * divided(jnp.asarray(radius, delta.dtype), jnp.sqrt(jnp.sum(delta**2))))

    def start(key: Key, image: Array) -> Array:
        bumps, number = grid_of_bumps(image.shape, p)
        turn, sign = jax.random.split(key)
        count = number.max() + 1
        turned = jax.random.bernoulli(turn, shape=(count,))[number]
        signs = jax.random.rademacher(sign, (count, image.shape[2]), image.dtype)[number]
        bumps = jnp.asarray(bumps, image.dtype)
        return bring_in(image, jnp.where(turned, bumps[1], bumps[0])[..., None] * signs)

    def move(key: Key, number: Array, image: Array, found: Array) -> Array:
        side = sides(share, image.shape, bumps=True)
        lengths, which = np.unique(side, return_inverse=True)
        bumps = jnp.asarray(bumps_in_corner(lengths, image.shape, p), image.dtype)
        side, which = _at(side, number), _at(which, number)
        drawn = jax.random.uniform(key, (5 + image.shape[2],), jnp.float32)
        to, source = (_corner(each, side, image.shape) for each in (drawn[:2], drawn[2:4]))
        turn = (drawn[4] < 0.5).astype(jnp.int32)
        down, right = (jnp.arange(size, dtype=jnp.int32) - to[axis] for axis, size in enumerate(image.shape[:2]))
        # A bump stands in the corner and fits where it goes: what the index wraps around is 0.
        bump = bumps[which, turn][down % image.shape[0]][:, right % image.shape[1]]
        gains, loses = (_window(corner, side, image.shape) for corner in (to, source))

        # Channels first: sums over a short last axis are several times slower. Written down once, not in each sum.
        delta = jax.lax.optimization_barrier(jnp.moveaxis(found - image, 2, 0))
        before = jnp.where(gains, delta, 0)
        filled = bump * _sign(drawn[5:], image)[:, None, None]
        filled = filled + before * divided(jnp.ones_like(mass(before)), size(mass(before)))
        channels = image.shape[2]
        unused = jnp.maximum(radius**p - jnp.sum(mass(delta)), 0) / channels
        # Of all channels together, as in AutoAttack's code; the paper's algorithm 3 gives each channel its own.
        moving = jnp.sum(mass(jnp.where(gains | loses, delta, 0)))
        room = size(unused + moving) * (1 if p == 2 else channels)
        filled = filled * divided(room, size(mass(filled)))
        delta = jnp.moveaxis(jnp.where(gains, filled, jnp.where(loses, 0, delta)), 0, 2)
        return bring_in(image, delta)

    return start, move


def _frame(shape: Shape) -> tuple[int, int, int]:
    """Rows, columns and channels of an example; a vector of features is one row."""
    if len(shape) == 1:
        return 1, shape[0], 1
    if len(shape) == 2:
        return shape[0], shape[1], 1
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise ValueError(f"an example must be [feature], [height, width] or [height, width, channel], got shape {shape}")


def _at(values: np.ndarray, number: Array) -> Array:
    """What holds for a window."""
    return jnp.asarray(values, jnp.int32)[number]


def _corner(uniform: Array, side: Array, shape: Shape) -> Array:
    """First row and column of a window. The last place is left out, as in AutoAttack, where there are others; but not
    in a segment, whose last feature only a window there ever reaches."""
    segment = min(shape[:2]) == 1
    places = jnp.maximum(jnp.asarray(shape[:2], jnp.int32) - side + int(segment), 1)
    return jnp.floor(uniform * places.astype(uniform.dtype)).astype(jnp.int32)


def _window(corner: Array, side: Array, shape: Shape) -> Array:
    """Which pixels lie in it, `[rows, columns]`."""
    down = jnp.arange(shape[0], dtype=jnp.int32) - corner[0]
    right = jnp.arange(shape[1], dtype=jnp.int32) - corner[1]
    return ((down >= 0) & (down < side))[:, None] & ((right >= 0) & (right < side))[None, :]


def _moved(image: Array, delta: Array) -> Array:
    """The sum, in the box, and no pixel further away than delta says: its rounding is taken back."""
    return jnp.clip(jnp.nextafter(image + delta, image), 0, 1)


def _sign(uniform: Array, image: Array) -> Array:
    return jnp.where(uniform < 0.5, -1, 1).astype(image.dtype)
