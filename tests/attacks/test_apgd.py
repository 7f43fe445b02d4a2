"""Auto-PGD: the reference's traces, and the mistakes that leave them; by hand; closed forms; starts, targets, draws."""

import importlib
import math
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry
from jaxrobust.attacks.search import Answer, Randomized, begin, step

from .golden import model, traces
from .recorded import as_strong, compare, withstanding

# The function hides the module of the same name.
apgd_module = importlib.import_module("jaxrobust.attacks.apgd")
KEY = jax.random.key(0)
BALLS = {
    "linf": geometry.linf(),
    "l2": geometry.l2(),
    "l1": geometry.l1(),
    "l3": geometry.lp(3.0),
    "fourier_linf": geometry.fourier_linf(),
}
QUICK = {
    *(("at", norm, loss, 20) for norm in ("Linf", "L2") for loss in ("ce", "dlr", "dlr-targeted")),
    ("at", "L2", "dlr-targeted", 100),
}
TRACES = [
    pytest.param(*trace, marks=() if trace in QUICK else pytest.mark.slow)
    for name in ("std", "at")
    for norm in ("Linf", "L2")
    for loss in ("ce", "dlr", "dlr-targeted")
    for trace in ((name, norm, loss, steps) for steps in (10, 20, 100))
]


def test_checkpoints_by_hand():
    found = apgd_module._intervals(100)
    assert {int(i): int(found[i]) for i in found.nonzero()[0]} == {
        22: 22,
        41: 19,
        57: 16,
        70: 13,
        80: 10,
        87: 7,
        93: 6,
        99: 6,
    }
    assert apgd_module._intervals(20).tolist() == [0] * 4 + [4, 0, 0, 3, 0, 2] + [1] * 11
    assert apgd_module._intervals(1).tolist() == [0, 1]


def test_four_points_by_hand():
    """One pixel at 0.5, a loss that peaks at 0.6, steps of 0.5: far ahead, halved and back, then past and back."""

    def peak(logits, labels):
        return -jnp.abs(logits[:, 0] - 0.6)

    search = attacks.apgd(geometry.linf(), 0.25, steps=3, loss=peak, start=attacks.no_start)
    image, label = jnp.array([[0.5]]), jnp.array([0])

    def logits_fn(images):
        return jnp.concatenate([images, images - 1], axis=1)

    state = begin(search, KEY[None], image, label, logits_fn(image), jnp.zeros(1, jnp.int32))
    points, steps = [], []
    ask = jax.jit(lambda state: step(search, logits_fn, KEY[None], state, image, label))
    while not state.done.all():
        points.append(float(state.point[0, 0]))
        state = ask(state)
        steps.append(float(state.memory.step_size[0]))
    np.testing.assert_allclose(points, [0.5, 0.75, 0.6875, 0.546875], rtol=1e-6)
    np.testing.assert_allclose(steps, [0.5, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(state.found, 0.546875, rtol=1e-6)
    assert not state.broken


@pytest.mark.parametrize(("name", "norm", "loss", "steps"), TRACES)
def test_agreement_with_the_reference(name, norm, loss, steps, shared, x64):
    found = compare(shared, name, norm, loss, steps, shifts=7)
    assert np.all(found.flags)
    # Beside what is not settled, one borderline example.
    assert np.sum(found.settled & ~found.same) <= 1
    kept = traces(shared, name, norm)[f"det_apgd_dlr_{steps}_flag"].sum() if (norm, loss) == ("L2", "dlr") else 64
    assert found.settled.sum() >= 0.8 * kept


def followed_by(change):
    """A search whose every next state is changed, given the one before."""

    def mistaken(search):
        def tell(state, image, label, answer):
            return change(state, search.tell(state, image, label, answer))

        return replace(search, tell=tell)

    return mistaken


def momentum_at_once(old, new):
    first = old.memory.count == 0
    return new._replace(point=jnp.where(first, old.point + 0.75 * (new.point - old.point), new.point))


# A constant of the module or a change of every state, and a trace that shows it.
MISTAKES = {
    "no momentum": ({"MOMENTUM": 1.0}, None, "ce"),
    "momentum at the first step": ({}, momentum_at_once, "ce"),
    "a strict threshold": ({"RHO": 0.75 - 1e-6}, None, "ce"),
    "intervals of one length": ({"SHORTER_BY": 0.0, "SHORTEST_INTERVAL": 0.22}, None, "ce"),
    "no plateau": (
        {},
        lambda _, new: new._replace(memory=new.memory._replace(reduced=jnp.ones_like(new.memory.reduced))),
        "ce",
    ),
    "the first misclassified point": (
        {},
        lambda old, new: new._replace(found=jnp.where(old.broken, old.found, new.found)),
        "ce",
    ),
    "the first rise against the start": (
        {},
        lambda _, new: new._replace(
            memory=new.memory._replace(last=jnp.where(new.memory.count == 1, new.memory.value, new.memory.last))
        ),
        "dlr-targeted",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_leaves_the_trace(mistake, shared, x64, monkeypatch):
    constants, change, loss = MISTAKES[mistake]
    for name, value in constants.items():
        monkeypatch.setattr(apgd_module, name, value)
    change = followed_by(change) if change else lambda search: search
    found = compare(shared, "at", "Linf", loss, 20, change=change)
    assert np.sum(~found.same) > 3
    # Which examples withstand tells next to nothing.
    assert found.flags.mean() > 0.9


@pytest.fixture(scope="module")
def line():
    """A linear model of three classes, images away from the box, and how far each is from the boundary."""
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((3, 4, 4, 2))
    images = rng.uniform(0.4, 0.6, (24, 4, 4, 2))
    scores = np.einsum("cijk,nijk->nc", weights, images - 0.5)
    return weights, images, scores, scores.argmax(1)


def margins(line, ball):
    """min over wrong classes of (z_y - z_j) / ||w_y - w_j||_*: inside it, a linear model withstands."""
    weights, _, scores, labels = line
    norm = jax.jit(jax.vmap(jax.vmap(ball.dual_norm)))
    lengths = np.asarray(norm(jnp.asarray(weights[:, None] - weights)))
    gaps = scores[np.arange(24), labels][:, None] - scores
    with np.errstate(invalid="ignore"):
        found = gaps / lengths[labels]
    return np.where(np.arange(3) == labels[:, None], np.inf, found).min(1)


@pytest.mark.parametrize("ball", BALLS)
def test_a_linear_model_withstands_up_to_its_margin(ball, line, x64):
    weights, images, _, labels = line
    known = margins(line, BALLS[ball])
    radius = float(np.sort(known)[11:13].mean())
    search = attacks.apgd(BALLS[ball], radius, steps=20, targets=2)
    found = jax.jit(lambda: search(KEY, logits_of(weights), jnp.asarray(images), jnp.asarray(labels)))()
    robust = np.asarray(logits_of(weights)(found)).argmax(1) == labels
    # Where a margin is a hundredth beside the radius, twenty steps need not settle it.
    clear = np.abs(known - radius) > 0.01 * radius
    np.testing.assert_array_equal(robust[clear], (known > radius)[clear])
    assert clear.sum() >= 20
    lengths = np.asarray(jax.vmap(BALLS[ball].norm)(found - images))
    assert np.all(lengths <= radius * (1 + 1e-9))


def logits_of(weights):
    return lambda images: jnp.einsum("cijk,nijk->nc", jnp.asarray(weights), images - 0.5)


@pytest.mark.parametrize("name", ["linf", "l2", "l3", "fourier_linf"])
def test_the_start_is_as_far_as_the_radius(name, images, labels):
    ball, keys = BALLS[name], jax.random.split(KEY, 6)
    middle = jnp.clip(images, 0.2, 0.8)

    @jax.jit
    def lengths():
        begun_at = begun(attacks.apgd(ball, 0.01), middle, labels, jnp.zeros((6, 3)), 0).point
        drawn = jax.vmap(lambda key: ball.sample(key, middle.shape[1:]))(keys)
        return jax.vmap(ball.norm)(begun_at - middle), jax.vmap(ball.norm)(0.01 * drawn)

    on_the_sphere, in_the_ball = lengths()
    np.testing.assert_allclose(on_the_sphere, 0.01, rtol=1e-4)
    assert not np.allclose(in_the_ball, 0.01, rtol=1e-4)


def begun(search, images, labels, logits, run):
    runs = jnp.full(len(images), run, jnp.int32)
    given = () if search.start is None else (search.start,)
    return begin(search, jax.random.split(KEY, len(images)), images, labels, logits, runs, *given)


def test_starts_of_ones_own(images, labels, curved):
    logits = curved(images)
    recorded = jnp.clip(images + 0.05, 0, 1)
    given = begun(attacks.apgd(geometry.linf(), 0.1, start=recorded), images, labels, logits, 0)
    np.testing.assert_array_equal(given.point, recorded)
    # Brought into the ball, if it lies outside.
    outside = begun(attacks.apgd(geometry.linf(), 0.02, start=recorded), images, labels, logits, 0)
    np.testing.assert_allclose(outside.point, jnp.clip(images + 0.02, 0, 1), atol=1e-6)
    clean = begun(attacks.apgd(geometry.linf(), 0.1, start=attacks.no_start), images, labels, logits, 0)
    np.testing.assert_array_equal(clean.point, images)


def test_targets_are_the_largest_wrong_logits_in_turn(images):
    logits = jnp.array([[3.0, 1.0, 2.0, 0.0, 5.0]] * 6)
    labels = jnp.full(6, 4)
    search = attacks.apgd(geometry.linf(), 0.1, targets=9, restarts=2)
    assert [search.runs(classes) for classes in (2, 3, 4, 5, 11)] == [2, 4, 6, 8, 18]
    targets = [int(begun(search, images, labels, logits, run).memory.target[0]) for run in range(8)]
    assert targets == [0, 0, 2, 2, 1, 1, 3, 3]
    untargeted = attacks.apgd(geometry.linf(), 0.1, restarts=3)
    assert [untargeted.runs(classes) for classes in (2, 10)] == [3, 3]


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("options", [{"loss": attacks.losses.dlr}, {"targets": 9}], ids=["dlr", "targets"])
def test_few_classes(classes, options, images, line):
    """Pixels decide each class; from the first to the second is not far."""
    weights = np.random.default_rng(3).standard_normal((classes, 4, 4, 2)).astype(np.float32)
    logits_fn = logits_of(weights)
    middle = 0.4 + 0.2 * images
    labels = jnp.argmax(logits_fn(middle), axis=1)
    search = attacks.apgd(geometry.linf(), 0.2, steps=5, **options)
    found = jax.jit(lambda: search(KEY, logits_fn, middle, labels))()
    assert np.all(np.isfinite(found))
    assert np.all(logits_fn(found).argmax(1) != labels)


def test_a_saturated_model_hides_from_cross_entropy_alone(shared):
    """Logits times a thousand: the loss is 0 in single precision, and so is its gradient."""
    logits_fn, images, labels = model(shared, "std", "float32")
    images, labels = images[:64], labels[:64]

    def withstands(scale, **options):
        search = attacks.apgd(geometry.linf(), 0.1, steps=20, start=attacks.no_start, **options)
        found = jax.jit(lambda f: search(KEY, lambda x: scale * f(x), images, labels))(logits_fn)
        return float(jnp.mean(jnp.argmax(logits_fn(found), -1) == labels))

    plain, hidden = (withstands(scale) for scale in (1.0, 1e3))
    ratio = withstands(1e3, loss=attacks.losses.dlr)
    assert hidden > 0.9
    assert plain < 0.6
    assert ratio < 0.6


def test_draws_are_averaged(images, labels):
    """A model whose gradient is a draw of sign and weight: the mean of many follows the weight."""
    weight = jnp.asarray(np.random.default_rng(4).standard_normal((4, 4, 2)), jnp.float32)

    def draw(keys, points):
        def one(key, point):
            noisy = weight + 4 * jax.random.normal(key, weight.shape)
            score = jnp.sum(point * noisy)
            return jnp.stack([score, -score])

        return jax.vmap(one)(keys, points)

    def follows(draws):
        search = attacks.apgd(
            geometry.linf(), 0.1, steps=1, start=attacks.no_start, loss=attacks.losses.margin, draws=draws
        )
        state = begun(search, images, jnp.zeros(6, jnp.int32), jnp.zeros((6, 2)), 0)
        keys = jax.random.split(KEY, 6)
        run = jax.jit(lambda state: step(search, Randomized(draw), keys, state, images, jnp.zeros(6, jnp.int32)))
        return float(jnp.mean(jnp.sign(run(state).memory.slope) == -jnp.sign(weight)))

    assert follows(400) > 0.9
    assert follows(1) < 0.75


def told(losses, steps=100):
    """States after each of these losses, from a gray image of four features whose label stays right."""
    search = attacks.apgd(geometry.linf(), 0.1, steps=steps, start=attacks.no_start)
    image, label, logits = jnp.full(4, 0.5), jnp.int32(0), jnp.array([1.0, 0.0])
    states, tell = [search.init(KEY, image, label, logits, jnp.int32(0))], jax.jit(search.tell)
    for loss in losses:
        states.append(tell(states[-1], image, label, Answer(logits, loss, jnp.ones(4))))
    return states[1:]


def test_the_first_checkpoint_knows_no_plateau():
    """21 rises of 22, none above the start: the step stays. A checkpoint later it is halved."""
    losses = [jnp.float32(loss) for loss in (0, *range(-50, -9))]
    states = told(losses)
    np.testing.assert_allclose([float(states[at].memory.step_size) for at in (22, 40, 41)], [0.2, 0.2, 0.1])


def test_only_a_higher_loss_is_better():
    np.testing.assert_array_equal(told([jnp.float32(0)] * 5)[-1].memory.best, 0.5)
    assert np.all(told([jnp.float32(loss) for loss in range(5)])[-1].memory.best > 0.5)


def test_a_loss_that_is_no_number_is_beaten_by_any_other(images):
    search = attacks.apgd(geometry.linf(), 0.1, start=attacks.no_start)
    state = begun(search, images, jnp.zeros(6, jnp.int32), jnp.zeros((6, 2)), 0)
    answer = Answer(jnp.zeros((6, 2)), jnp.full(6, jnp.nan), jnp.ones_like(images))
    told = jax.vmap(search.tell)(state, images, jnp.zeros(6, jnp.int32), answer)
    assert np.all(np.isnan(told.memory.value))
    told = jax.vmap(search.tell)(told, images, jnp.zeros(6, jnp.int32), answer._replace(value=jnp.full(6, -3.0)))
    np.testing.assert_array_equal(told.memory.value, -3.0)


def test_restarts_break_what_one_run_does_not(images, curved):
    """A ridge that only some starts see."""
    labels = jnp.argmax(curved(images), 1)

    def broken(restarts):
        search = attacks.apgd(geometry.linf(), 0.1, steps=1, restarts=restarts)
        found = jax.jit(lambda: search(KEY, curved, many, jnp.tile(labels, 8)))()
        return int(jnp.sum(jnp.argmax(curved(found), 1) != jnp.tile(labels, 8)))

    many = jnp.tile(images, (8, 1, 1, 1))
    assert broken(6) > broken(1)


def test_jit_changes_nothing_and_traces_once(images, labels, curved):
    search = attacks.apgd(geometry.linf(), 0.05, steps=2)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(keys, images, labels):
        return search(keys, curved, images, labels)

    keys = jax.random.split(KEY, 6)
    np.testing.assert_allclose(run(keys, images, labels), search(keys, curved, images, labels), atol=1e-6)
    run(keys[::-1], images[::-1], labels)
    with pytest.raises(AssertionError, match="traced"):
        run(keys[:3], images[:3], labels[:3])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("ball", ["linf", "l2", "l1"])
def test_dtype_is_kept(dtype, ball, images, labels, curved, x64):
    search = attacks.apgd(BALLS[ball], 0.05, steps=5, larger_radius=ball == "l1")
    assert jax.eval_shape(lambda x: search(KEY, curved, x, labels), images.astype(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": float("nan")}, "radius must not be negative, got nan"),
        ({"radius": math.inf}, "radius must be finite, got inf"),
        ({"geometry": geometry.linf}, r"geometry must be a Geometry, such as geometry\.linf\(\), got <function"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"targets": -1}, "targets must be at least 0, got -1"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"restarts": 2, "start": attacks.no_start}, "restarts must be 1 without a random start, got 2"),
        ({"restarts": 2, "start": jnp.zeros((1, 2, 2, 1))}, "restarts must be 1 without a random start, got 2"),
        ({"targets": 3, "loss": attacks.losses.dlr}, "loss must be left out with targets, got 3 targets"),
        ({"larger_radius": True}, r"larger_radius needs geometry\.l1\(\), got linf"),
        ({"geometry": geometry.l1(), "larger_radius": True, "steps": 4}, "larger_radius needs at least 5 steps"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.apgd(**{"geometry": geometry.linf(), "radius": 0.1, **options})


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    ("attack", "options"),
    [("apgd-ce", {}), ("apgd-dlr", {"loss": attacks.losses.dlr}), ("apgd-t", {"targets": 9})],
)
def test_as_strong_as_the_reference(norm, attack, options, shared):
    name = "at"
    stored = traces(shared, name, norm)
    flags = dict(zip(stored["individual_attacks"].tolist(), stored["flags_individual"], strict=True))[attack]
    radius = float(stored["eps"])
    one, again, largest = withstanding(shared, name, norm, radius, **options)
    assert as_strong(one, flags, again)
    assert largest <= 1 + 1e-6
    smaller, again, _ = withstanding(shared, name, norm, 0.8 * radius, **options)
    assert not as_strong(smaller, flags, again)
