"""Square: its schedule and bumps, each proposal against one written in loops, and how often it breaks what it must."""

import dataclasses
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry
from jaxrobust.attacks.search import Answer, begin, step
from jaxrobust.attacks.square_bumps import bump, bumps_in_corner, grid_of_bumps, half_bump, shares, sides

from .golden import model, pieces, traces

MODULE = importlib.import_module("jaxrobust.attacks.square")
BALLS = {"linf": (geometry.linf(), 0.1), "l2": (geometry.l2(), 0.5), "l1": (geometry.l1(), 1.5)}
FILES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
KEY = jax.random.key(0)
SHAPES = [(side, side, 1) for side in (3, 4, 5, 7, 12, 14, 24)] + [(8, 5, 3), (6, 9), (1, 7, 2), (5, 1, 1)]
SHAPES += [(features,) for features in (1, 2, 3, 4, 5, 11, 17)]
# Each of these is a program of its own.
FOLLOWED = [(side, side, 1) for side in (3, 4, 12, 14, 24)] + [(8, 5, 3), (6, 9), (1, 7, 2), (1,), (2,), (5,), (17,)]
every = pytest.mark.parametrize("ball", BALLS)


def square(ball, **options):
    return attacks.square(*BALLS[ball], **options)


def norms(ball, delta):
    """Of each example `[batch, ...]`, in float64."""
    flat = np.abs(np.asarray(delta, np.float64)).reshape(len(delta), -1)
    return {"linf": flat.max(1), "l2": np.sqrt((flat**2).sum(1)), "l1": flat.sum(1)}[ball]


def always_right(images):
    """Logits of a model that is never broken, and whose margin changes with every pixel."""
    flat = images.reshape(len(images), -1)
    wave = jnp.sin(7 * flat @ jnp.cos(jnp.arange(flat.shape[1], dtype=images.dtype)))
    return jnp.stack([2 + wave, jnp.zeros_like(wave)], 1)


def questions(search, images, count, logits_fn=always_right):
    """The states of a run from its start on, `[question, batch]` of each leaf."""
    labels = jnp.zeros(len(images), jnp.int32)
    keys = jax.random.split(KEY, len(images))

    @jax.jit
    def run(images):
        def one(state, _):
            return step(search, logits_fn, keys, state, images, labels), state

        begun = begin(search, keys, images, labels, logits_fn(images), jnp.zeros(len(images), jnp.int32))
        last, states = jax.lax.scan(one, begun, length=count)
        return jax.tree.map(lambda old, new: jnp.concatenate([old, new[None]]), states, last)

    return run(images)


def test_the_schedule_and_the_bumps_of_the_reference(shared):
    stored = pieces(shared)
    np.testing.assert_array_equal(shares(5000, 0.8, rescaled=False), stored["square_p_noresc"])
    np.testing.assert_array_equal(shares(5000, 0.8, rescaled=True), stored["square_p_resc_5000"])
    assert not np.array_equal(shares(5000, 0.8, rescaled=True), stored["square_p_noresc"])
    compared = 0
    for name, recorded in stored.items():
        if name.startswith("square_eta_rect"):
            exponent = {"L2": 2, "L1": 1}[name.split("_")[-2]]
            np.testing.assert_allclose(half_bump(*recorded.shape, exponent), recorded, rtol=0, atol=1e-12)
            assert not np.allclose(half_bump(*recorded.shape, 3 - exponent), recorded, atol=1e-3)
            compared += 1
    assert compared == 20


def test_the_schedule_by_hand():
    share = shares(20000, 1.0, rescaled=False)
    last = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    assert (1 / share[last]).tolist() == [2**k for k in range(9)]
    assert (1 / share[np.add(last, 1)]).tolist() == [2 ** (k + 1) for k in range(9)]
    assert share[-1] == 1 / 512
    # Rescaled to 100 questions, the first halving comes after one, the last after 80.
    assert (1 / shares(100, 1.0, rescaled=True)[[0, 1, 80, 81]]).tolist() == [1, 2**2, 2**8, 2**9]


def test_sides_by_hand():
    share = np.array([0.8, 0.4, 0.1, 0.00625])
    # sqrt(51.2) = 7.2, sqrt(25.6) = 5.1, sqrt(6.4) = 2.5, sqrt(0.4) = 0.6.
    assert sides(share, (8, 8, 1), bumps=False).tolist() == [7, 5, 3, 1]
    assert sides(share, (8, 8, 1), bumps=True).tolist() == [7, 5, 3, 3]
    # Even sides grow by one, but not out of the image.
    assert sides(share, (12, 12, 3), bumps=True).tolist() == [11, 9, 5, 3]
    assert sides(share, (4, 4, 1), bumps=True).tolist() == [4, 3, 3, 3]
    assert sides(share, (8, 5, 1), bumps=False).tolist() == [5, 4, 2, 1]
    # Of a segment a share of the length, not of its root.
    assert sides(share, (1, 20, 1), bumps=False).tolist() == [16, 8, 2, 1]
    assert sides(share, (20, 1, 1), bumps=True).tolist() == [17, 9, 3, 3]
    assert sides(share, (1, 2, 1), bumps=True).tolist() == [2, 2, 2, 2]


def test_bumps_by_hand():
    # 1 + 1/4 in the middle of the lower half, 1/4 around it; the upper half has one row of the same.
    quarters = np.array([[1, 5, 1], [-1, -1, -1], [-1, -5, -1]])
    assert (half_bump(2, 3, 2) / half_bump(2, 3, 2)[0, 0]).round(12).tolist() == np.abs(quarters[1:]).tolist()
    upper, lower = quarters[:1] / np.sqrt(27), quarters[1:] / np.sqrt(30)
    np.testing.assert_allclose(bump(3, 3, 2), np.concatenate([upper, lower]) / np.sqrt(2), atol=1e-15)
    np.testing.assert_allclose(bump(1, 3, 1), [[1 / 2, -1 / 36, -17 / 36]], atol=1e-15)
    assert bump(1, 1, 2).tolist() == [[-1.0]]
    assert bump(1, 2, 1).tolist() == [[0.5, -0.5]]
    placed = bumps_in_corner(np.array([3, 1]), (4, 5, 1), 2)
    np.testing.assert_array_equal(placed[0, 1, :3, :3], bump(3, 3, 2).T)
    assert np.count_nonzero(placed[0, 0]) == 9
    assert np.count_nonzero(placed[1, 0]) == 1


@pytest.mark.parametrize("exponent", [2, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_grid_of_bumps_covers_any_image(shape, exponent):
    rows, columns, _ = frame = MODULE._frame(shape)
    values, number = grid_of_bumps(frame, exponent)
    length = max(rows, columns) if min(rows, columns) == 1 else min(rows, columns)
    side = max(length // 5, 1)
    # Less than a fifth of the side is left bare above and to the left, nothing below and to the right.
    bare = max((length - 5 * side) // 2, 0)
    bare_rows, bare_columns = bare * (rows > 1), bare * (columns > 1)
    assert np.all(values[:, bare_rows:, bare_columns:] != 0)
    assert np.all(values[:, :bare_rows] == 0)
    assert np.all(values[:, :, :bare_columns] == 0)
    used = number[bare_rows:, bare_columns:]
    assert set(used.ravel()) == set(range(number.max() + 1))
    sizes = [np.sum(np.abs(values[0])[number == each] ** exponent) for each in range(number.max() + 1)]
    np.testing.assert_allclose(sizes[0], 1, atol=1e-12)
    assert max(sizes) <= 1 + 1e-12
    assert np.bincount(used.ravel()).max() == min(side, rows) * min(side, columns)


def by_hand(ball, image, found, side, drawn, mistake=None):
    """One proposal in loops over pixels and channels, in float64."""
    (rows, columns, channels), radius = image.shape, BALLS[ball][1]
    segment = min(rows, columns) == 1

    def corner(uniform):
        left = [max(size - side + (segment or mistake == "last place"), 1) for size in (rows, columns)]
        return [int(u * n) for u, n in zip(uniform, left, strict=True)]

    def inside(i, j, at):
        return at[0] <= i < at[0] + side and at[1] <= j < at[1] + side

    signs = [1 if u >= 0.5 else -1 for u in drawn[2 if ball == "linf" else 5 :]]
    signs = [1] * channels if mistake == "all positive" else signs
    signs = [signs[0]] * channels if mistake == "one sign" else signs
    one = corner(drawn[:2])
    pixels = [(i, j) for i in range(rows) for j in range(columns)]
    result = found.copy()
    if ball == "linf":
        for i, j in pixels:
            for k in range(channels):
                if inside(i, j, one):
                    moved = found[i, j, k] + 2 * radius * signs[k] * (-1 if mistake == "pixelwise" and i == j else 1)
                    result[i, j, k] = np.clip(np.clip(moved, image[i, j, k] - radius, image[i, j, k] + radius), 0, 1)
        return result

    two = corner(drawn[2:4])
    p = {"l2": 2, "l1": 1}[ball]
    tile = bump(min(side, rows), min(side, columns), p)
    tile = tile.T if drawn[4] < 0.5 and not segment and mistake != "never turned" else tile
    delta = found - image
    total = np.sum(np.abs(delta) ** p)
    result = delta.copy()
    moving = [(i, j) for i, j in pixels if inside(i, j, one) or inside(i, j, two)]
    for k in range(channels):
        old = sum(abs(delta[i, j, k]) ** p for i, j in pixels if inside(i, j, one)) ** (1 / p)
        among = [k] if mistake == "alone" else range(channels)
        both = sum(abs(delta[i, j, m]) ** p for i, j in moving for m in among)
        new = {}
        for i, j in pixels:
            if inside(i, j, two) and mistake != "not emptied":
                result[i, j, k] = 0
        for i, j in pixels:
            if inside(i, j, one):
                kept = 0 if mistake == "forgets" or old == 0 else delta[i, j, k] / old
                new[i, j] = signs[k] * tile[i - one[0], j - one[1]] + kept
        unused = 0 if mistake == "no unused" else max(radius**p - total, 0) / channels
        room = (unused + both) ** (1 / p)
        room *= channels if ball == "l1" and mistake != "no channels" else 1
        size = sum(abs(value) ** p for value in new.values()) ** (1 / p)
        for (i, j), value in new.items():
            result[i, j, k] = value * room / size if size else 0
    if ball == "l2":
        return np.clip(image + result * radius / np.sqrt(np.sum(result**2)), 0, 1)
    limits = np.where(result > 0, 1 - image, image)
    low, high = 0.0, np.abs(result).max()
    for _ in range(200):
        middle = (low + high) / 2
        fits = np.minimum(np.maximum(np.abs(result) - middle, 0), limits).sum() <= radius * (1 - 1e-6)
        low, high = (low, middle) if fits else (middle, high)
    cut = np.minimum(np.maximum(np.abs(result) - (0 if mistake == "not projected" else high), 0), limits)
    return image + np.sign(result) * cut


def proposed(ball, shape):
    """16 clean images, the best found of each after three windows, and what is asked for the windows 5 and 120.

    Returns:
      images, best, and for both windows `(side, points, draws)`.
    """
    search, right = square(ball), Answer(jnp.tile(jnp.array([1.0, 0.0]), (16, 1)), None, None)
    rows, columns, channels = frame = MODULE._frame(shape)
    share, labels = shares(5000, 0.8, rescaled=False), jnp.zeros(16, jnp.int32)

    def tell(state, images, number, highest):
        """Answer that the point is right, and better than the highest so far or not."""
        number, highest = jnp.full(16, number, jnp.int32), jnp.full(16, highest)
        memory = state.memory._replace(answered=number, highest=highest)
        return jax.vmap(search.tell)(state._replace(memory=memory), images, labels, right)

    @jax.jit
    def run(images):
        state = begin(search, jax.random.split(KEY, 16), images, labels, right.logits, labels)
        for number in (0, 0, 0):
            state = tell(state, images, number, -jnp.inf)
        keys, count = state.memory.key, channels + (2 if ball == "linf" else 5)
        asked = [tell(state, images, number, jnp.inf).point for number in (5, 120)]
        drawn = [
            jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, n + 1), (count,), jnp.float32))(keys)  # noqa: B023
            for n in (5, 120)
        ]
        return state.found, asked, drawn

    images = jax.random.uniform(jax.random.key(5), (16, *shape), jnp.float64, -0.2, 1.2).clip(0, 1)
    found, asked, drawn = jax.tree.map(np.asarray, run(images))
    side = sides(share[[5, 120]], frame, bumps=ball != "linf")
    whole = (16, rows, columns, channels)
    points = [each.reshape(whole) for each in asked]
    return np.asarray(images).reshape(whole), found.reshape(whole), list(zip(side, points, drawn, strict=True))


MISTAKES = {
    "linf": ["all positive", "one sign", "pixelwise", "last place"],
    "l2": ["all positive", "one sign", "last place", "never turned", "not emptied", "forgets", "no unused", "alone"],
    "l1": ["all positive", "last place", "not emptied", "forgets", "no channels", "not projected", "alone"],
}


def apart(ball, images, found, windows, mistake=None):
    """The largest difference between what was asked and what is written in loops."""
    return max(
        np.abs(by_hand(ball, *example, side, draws, mistake) - point).max()
        for side, points, drawn in windows
        for *example, point, draws in zip(images, found, points, drawn, strict=True)
    )


@every
def test_proposals_are_those_written_in_loops(ball, x64):
    images, found, windows = proposed(ball, (8, 6, 2))

    assert [side for side, _, _ in windows] == [6, 3]
    assert apart(ball, images, found, windows) < 1e-9
    for mistake in MISTAKES[ball]:
        assert apart(ball, images, found, windows, mistake) > 1e-3, mistake


@every
def test_starts_by_hand(ball):
    """An image of 5 x 5 has bumps of one pixel; a black pixel has no room below."""
    search, radius = square(ball), BALLS[ball][1]
    image = jnp.full((5, 5, 2), 0.5).at[:, :2].set(0.0)

    @jax.jit
    def begin(keys):
        return jax.vmap(lambda key: search.init(key, image, jnp.int32(0), jnp.array([1.0, 0.0]), jnp.int32(0)).point)(
            keys
        )

    delta = np.float64(begin(jax.random.split(KEY, 64))) - np.float64(image)
    gray, up = delta[:, :, 2:], delta > 0
    sign = np.sign(gray)
    assert np.all(sign != 0)
    assert np.all(delta[:, :, :2] >= 0)
    # Stripes of l-infinity: one sign down a column; bumps: a sign for each pixel; always one for each channel.
    assert np.all(sign == sign[:, :1]) == (ball == "linf")
    free = sign[:, :1] if ball == "linf" else sign
    assert abs(free.mean()) <= 4 / np.sqrt(free.size)
    assert abs(np.mean(free[..., 0] * free[..., 1])) <= 4 / np.sqrt(free[..., 0].size)
    moved = np.sum(up[:, :, :2], axis=(1, 2, 3)) + 30
    # Scaled to the ball and cut by the box, or projected on both: in l1 what has room shares the whole radius.
    size = {"linf": np.full(64, radius), "l2": np.full(64, radius / np.sqrt(50)), "l1": radius / moved}[ball]
    np.testing.assert_allclose(np.abs(delta)[delta != 0], np.repeat(size, moved), rtol=1e-5)


def test_half_of_the_bumps_at_the_start_are_turned():
    """Bumps of two pixels by two: the sign changes from the upper row to the lower, or from left to right."""
    search, image = square("l2"), jnp.full((10, 10, 1), 0.5)
    begin = jax.jit(
        jax.vmap(lambda key: search.init(key, image, jnp.int32(0), jnp.array([1.0, 0.0]), jnp.int32(0)).point)
    )
    sign = np.sign(np.asarray(begin(jax.random.split(KEY, 64)))[..., 0] - 0.5)
    tiles = sign.reshape(64, 5, 2, 5, 2)
    down = tiles[:, :, 0, :, 0] != tiles[:, :, 1, :, 0]
    right = tiles[:, :, 0, :, 0] != tiles[:, :, 0, :, 1]
    assert np.all(down ^ right)
    assert within_four_sigmas(down.mean(), 1 / 2, down.size)


def largest_window(**options):
    """The most pixels that the last of 100 questions changes, of eight images of 24 x 24."""
    images = jax.random.uniform(jax.random.key(1), (8, 24, 24, 1), jnp.float32, 0.3, 0.7)
    states = questions(square("linf", queries=101, **options), images, 99)
    return np.sum(np.asarray(states.point[-1] != states.found[-1]), axis=(1, 2, 3)).max()


def test_windows_shrink_as_the_options_say():
    """Question 99 covers a fifth of the image; a 512th of 0.8 where 100 questions count as 10,000; a 40th of 0.1."""
    plain, rescaled, small = largest_window(), largest_window(rescaled=True), largest_window(first_share=0.1)
    assert 4**2 < plain <= 11**2
    assert rescaled == 1
    assert 1 < small <= 4**2


@every
def test_proposals_on_features_are_segments(ball, x64):
    images, found, windows = proposed(ball, (9,))
    assert apart(ball, images, found, windows) < 1e-9
    # What the box took from a bump is given to the next; with channels, l1 gives more than there is anyway.
    assert (apart(ball, images, found, windows, "no unused") > 1e-3) == (ball != "linf")
    # The last feature is in some window: of images the last row is not.
    assert np.any([np.abs(points - found).max(0) > 1e-3 for _, points, _ in windows], axis=0).all()


@every
@pytest.mark.parametrize("shape", FOLLOWED)
def test_every_point_is_within_the_radius_and_the_box(ball, shape):
    images = jax.random.uniform(jax.random.key(1), (8, *shape), jnp.float32, -0.5, 1.5).clip(0, 1).at[0].set(0.5)
    states = questions(square(ball, queries=30), images, 30)
    assert np.all(states.done == (np.arange(31) == 30)[:, None])
    radius = BALLS[ball][1]
    for each in (*states.point, *states.found):
        assert each.dtype == jnp.float32
        assert each.min() >= 0
        assert each.max() <= 1
        assert norms(ball, np.float64(each) - np.float64(images)).max() <= radius * (1 + 1e-6)
    # From gray the start goes to the border of the ball, where the box lets it.
    longest = norms(ball, np.float64(states.point[0]) - np.float64(images))[0]
    assert longest >= min(radius, 0.5 * np.prod(shape)) * (1 - 1e-5)


@every
def test_the_best_margin_never_falls(ball):
    images = jax.random.uniform(jax.random.key(1), (8, 6, 6, 2))
    search = square(ball, queries=60)

    def monotone(search):
        found = questions(search, images, 60).found
        margins = np.stack([always_right(each)[:, 0] for each in found])[1:]
        return np.all(np.diff(margins, axis=0) <= 0) and np.any(np.diff(margins, axis=0) < 0)

    def accepting(state, image, label, answer):
        lowest = state.memory._replace(highest=jnp.full_like(state.memory.highest, -jnp.inf))
        return search.tell(state._replace(memory=lowest), image, label, answer)

    assert monotone(search)
    assert not monotone(dataclasses.replace(search, tell=accepting))


def share_robust(ball, shape, limit, count, queries, logits_fn):
    """How many of so many gray examples withstand a run of so many questions."""
    attack = attacks.square(BALLS[ball][0], limit, queries=queries)
    images = jnp.full((count, *shape), 0.5)
    found = jax.jit(lambda key: attack(key, logits_fn, images, jnp.zeros(count, jnp.int32)))(KEY)
    return np.mean(np.argmax(logits_fn(found), 1) == 0)


def within_four_sigmas(found, expected, count):
    return abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / count)


def test_one_pixel_of_two_channels_takes_all_of_two_signs(monkeypatch):
    """Each question has both signs positive with probability 1/4, whatever came before."""

    def corner_alone(images):
        corner = jnp.all(images > 0.55, axis=(1, 2, 3))
        return jnp.stack([1 - 2 * corner.astype(jnp.float32), jnp.zeros(len(images))], 1)

    def robust():
        return share_robust("linf", (1, 1, 2), 0.1, 4096, 4, corner_alone)

    assert within_four_sigmas(robust(), (3 / 4) ** 4, 4096)
    sign = MODULE._sign
    monkeypatch.setattr(MODULE, "_sign", lambda uniform, image: jnp.ones_like(sign(uniform, image)))
    assert not within_four_sigmas(robust(), (3 / 4) ** 4, 4096)
    monkeypatch.setattr(MODULE, "_sign", lambda uniform, image: sign(uniform[:1] + 0 * uniform, image))
    assert not within_four_sigmas(robust(), (3 / 4) ** 4, 4096)


@every
def test_one_feature_is_a_chain_of_three_states(ball):
    """In l2 and l1 a bump of the other sign first cancels what was there; only from 0 does it reach the other side."""

    def upper(images):
        return jnp.stack([0.09 - (images[:, 0] - 0.5), jnp.zeros(len(images))], 1)

    below, zero = 1 / 2, 0.0
    for _ in range(4):
        below, zero = (below / 2, 0.0) if ball == "linf" else (below / 2, below / 2 + zero / 2)
    found = share_robust(ball, (1,), 0.1, 4096, 5, upper)
    assert within_four_sigmas(found, below + zero, 4096)
    assert not within_four_sigmas(found, below + zero + 1 / 8, 4096)


@pytest.fixture(scope="module")
def linear():
    """A linear classifier of six features: logits, images right, and the dual norm's share that each can bear."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(6).astype(np.float32)
    images = rng.uniform(0.3, 0.7, (150, 6)).astype(np.float32)
    score = (images - 0.5) @ weight

    def logits_fn(x):
        value = (x - 0.5) @ weight
        return jnp.stack([-value, value], 1)

    return logits_fn, jnp.asarray(images), jnp.asarray(score > 0, int), np.abs(score), weight


def test_the_closed_form_of_a_linear_model(linear, monkeypatch):
    """In l-infinity coordinate after coordinate finds the optimum; deliberate mistakes do not."""
    logits_fn, images, labels, score, weight = linear
    expected = score > 0.05 * np.abs(weight).sum()
    assert 0.2 < expected.mean() < 0.8

    def agrees():
        search = attacks.square(geometry.linf(), 0.05, queries=400)
        found = jax.jit(lambda: search(KEY, logits_fn, images, labels))()
        return np.array_equal(np.argmax(logits_fn(found), 1) == labels, expected)

    assert agrees()
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "shares", lambda count, first, rescaled: np.full(count, first))
        assert not agrees()
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "_sign", lambda uniform, image: jnp.ones(uniform.shape, image.dtype))
        assert not agrees()
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "_corner", lambda uniform, side, shape: jnp.zeros(2, jnp.int32))
        assert not agrees()


@pytest.mark.parametrize("ball", ["l2", "l1"])
def test_what_the_closed_form_calls_robust_is_not_broken(ball, linear):
    logits_fn, images, labels, score, weight = linear
    search = attacks.square(BALLS[ball][0], 0.2, queries=200)
    found = jax.jit(lambda: search(KEY, logits_fn, images, labels))()
    broken = np.argmax(logits_fn(found), 1) != labels
    bearable = score > 0.2 * float(BALLS[ball][0].dual_norm(weight))
    assert not np.any(broken & bearable)
    assert np.any(broken)


@every
def test_an_example_does_not_depend_on_the_others(ball, images, labels, curved):
    search, labels = square(ball, queries=15, first_share=0.2), jnp.argmax(curved(images), 1)
    keys = jax.random.split(KEY, 6)
    run = jax.jit(lambda keys, images, labels: search(keys, curved, images, labels))
    whole = np.asarray(run(keys, images, labels))
    np.testing.assert_array_equal(run(keys, images, labels), whole)
    np.testing.assert_allclose(run(keys[4:], images[4:], labels[4:]), whole[4:], atol=1e-6)
    assert not np.allclose(run(keys[:2], images[4:], labels[4:]), whole[4:], atol=1e-2)


def test_images_that_are_wrong_are_left_alone_and_a_recorded_start_is_asked_first():
    search = square("linf", queries=5)
    images = jnp.array([[0.2], [0.6], [0.45]])
    labels = jnp.zeros(3, jnp.int32)

    def threshold(images):
        return jnp.concatenate([0.5 - images, images - 0.5], 1)

    keys = jax.random.split(KEY, 3)
    start = jnp.array([[0.9], [0.6], [0.52]])
    state = jax.jit(lambda: begin(search, keys, images, labels, threshold(images), labels, start))()
    assert state.done.tolist() == state.broken.tolist() == [False, True, False]
    assert state.found[1] == images[1]
    np.testing.assert_allclose(state.point[:, 0], [0.3, 0.6, 0.52], atol=1e-6)
    state = jax.jit(lambda: step(search, threshold, keys, state, images, labels))()
    assert state.broken.tolist() == [False, True, True]
    np.testing.assert_allclose(state.found[:, 0], [0.3, 0.6, 0.52], atol=1e-6)
    assert state.memory.answered.tolist() == [1, 0, 1]


def test_a_tie_that_the_label_wins_is_not_broken():
    search = square("linf", queries=5)
    image, label = jnp.full((2,), 0.5), jnp.int32(0)
    state = jax.jit(search.init)(KEY, image, label, jnp.array([1.0, 0.0]), jnp.int32(0))
    tell = jax.jit(search.tell)
    first, second = (tell(state, image, jnp.int32(label), Answer(jnp.zeros(2), None, None)) for label in (0, 1))
    assert (bool(first.broken), bool(first.done), float(first.memory.highest)) == (False, False, 0.0)
    assert (bool(second.broken), bool(second.done)) == (True, True)
    # A worse answer later is not taken; two classes and three are told the same way.
    worse = tell(first, image, label, Answer(jnp.array([2.0, 1.0, 0.0]), None, None))
    np.testing.assert_array_equal(worse.found, first.found)
    assert not np.array_equal(first.found, first.point)


def test_restarts_begin_elsewhere(images, labels, curved):
    """Each run has its own key, and an example is broken if any of them breaks it."""
    once, thrice = (square("linf", queries=3, restarts=count) for count in (1, 3))
    assert (once.runs(10), thrice.runs(10)) == (1, 3)
    keys = jax.random.split(KEY, 6)
    begun = [begin(once, keys, images, labels, curved(images), jnp.full(6, run, jnp.int32)).point for run in (0, 1)]
    assert not np.allclose(*begun, atol=1e-3)
    robust = [np.argmax(curved(attack(keys, curved, images, labels)), 1) == labels for attack in (once, thrice)]
    assert np.all(robust[1] <= robust[0])


def test_jit_changes_nothing_and_traces_once(images, labels, curved):
    search = square("l2", queries=4)
    keys = jax.random.split(KEY, 6)
    begun = begin(search, keys, images, labels, curved(images), labels * 0)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def once(state, images):
        return step(search, curved, keys, state, images, labels)

    compiled, plain = once(begun, images), step(search, curved, keys, begun, images, labels)
    np.testing.assert_allclose(compiled.point, plain.point, atol=1e-6)
    once(compiled, images)
    with pytest.raises(AssertionError, match="traced"):
        once(jax.tree.map(lambda leaf: leaf[:0], begun), images)


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(ball, dtype, images, labels, curved, x64):
    attack = square(ball, queries=2)
    found = jax.eval_shape(lambda x: attack(KEY, curved, x, labels), images.astype(dtype))
    assert (found.dtype, found.shape) == (dtype, images.shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": geometry.fourier_linf()}, "geometry must be one of linf, l2, l1, got fourier_linf"),
        ({"radius": float("nan")}, "radius must not be negative, got nan"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"queries": 9.5}, "queries must be a whole number, got 9.5"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"first_share": 0.0}, r"first_share must be in \(0, 1\], got 0\.0"),
        ({"first_share": 1.5}, r"first_share must be in \(0, 1\], got 1\.5"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.square(**{"geometry": geometry.linf(), "radius": 0.1, **options})


def test_examples_of_another_rank_are_refused():
    videos = jnp.zeros((2, 3, 4, 4, 1))
    with pytest.raises(ValueError, match=r"an example must be \[feature\], .* got shape \(3, 4, 4, 1\)"):
        square("linf")(KEY, always_right, videos, jnp.zeros(2, jnp.int32))


@pytest.mark.slow
@pytest.mark.long
@every
def test_as_strong_as_the_reference(ball, shared, monkeypatch):
    """Within four standard errors of one run of either, from how often each example stands over our own seeds."""
    logits_fn, *examples = model(shared, "std", "float32")
    images, labels = (array[:100] for array in examples)
    stored = traces(shared, "std", FILES[ball])
    row = list(stored["individual_attacks"]).index("square")
    expected = stored["flags_individual"][row][: len(labels)].mean()

    def standing(seed):
        attack = attacks.square(BALLS[ball][0], float(stored["eps"]))
        key = jax.random.key(seed)
        return attacks.evaluate(key, logits_fn, images, labels, attack, batch_size=64, check=False).correct[0]

    runs = np.stack([standing(seed) for seed in range(2)])
    variance = np.var(runs, axis=0, ddof=1).sum() / len(labels) ** 2
    error = 4 * np.sqrt(variance * (1 + 1 / len(runs)))
    assert abs(runs.mean() - expected) <= error
    if ball == "linf":
        monkeypatch.setattr(MODULE, "shares", lambda count, first, rescaled: np.full(count, first))
        assert standing(0).mean() > expected + error
