"""Evaluation under a suite: the worst case, whatever the size of the batch, the devices, or a kill in the middle."""

import subprocess
import sys
import textwrap
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from flax import nnx

from jaxrobust import attacks, geometry
from jaxrobust.attacks import evaluation_file
from jaxrobust.attacks.evaluate import evaluate
from jaxrobust.attacks.pgd import Bounded
from jaxrobust.attacks.search import Randomized, Search, SearchState

RADIUS, KEY = 0.02, jax.random.key(3)


def climb(runs=2, questions=6, radius=RADIUS, name="climb"):
    """Gradient signs from a random start: a search with every part that the driver has to do with."""
    ball = geometry.linf()

    def init(key, image, label, logits, run):
        noise = jax.random.uniform(key, image.shape, image.dtype, -radius, radius)
        return SearchState(
            geometry.within(ball, image, image + noise, radius), image, jnp.bool_(False), jnp.bool_(False), jnp.int32(0)
        )

    def tell(state, image, label, answer):
        wrong = jnp.argmax(answer.logits) != label
        moved = state.point + radius / 4 * jnp.sign(answer.gradient)
        return SearchState(
            geometry.within(ball, image, moved, radius),
            jnp.where(wrong, state.point, state.found),
            state.broken | wrong,
            state.memory + 1 >= questions,
            state.memory + 1,
        )

    def loss(memory, logits, label):
        return attacks.losses.cross_entropy(logits[None], label[None])[0]

    return Search(name, ball, radius, init, tell, loss=loss, runs=lambda classes: runs)


@pytest.fixture(scope="module")
def model():
    """A linear classifier of 83 digits that is right on nearly all; its robust accuracy is known in closed form."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32)[:83], labels[:83].astype(np.int32)
    weights = np.linalg.lstsq(images - 0.5, np.eye(10)[labels], rcond=None)[0].astype(np.float32)
    labels[5] = (labels[5] + 1) % 10
    return jax.tree_util.Partial(lambda w, x: (x - 0.5) @ w, jnp.asarray(weights)), images, labels


@pytest.fixture(scope="module")
def found(model):
    return evaluate(
        KEY, *model, {"climb": climb(), "pgd": attacks.pgd(geometry.linf(), RADIUS, steps=3)}, batch_size=24
    )


def test_a_result_is_the_worst_case(model, found):
    logits_fn, images, labels = model
    assert found.names == ("climb", "pgd")
    assert found.correct.shape == (2, 83)
    assert found.adversarial.shape == (83, 64)
    np.testing.assert_array_equal(found.clean, np.argmax(logits_fn(images), 1) == labels)
    assert not found.clean[5]
    assert found.clean.mean() > 0.9
    # Cumulative: who is lost is lost for ever; the clean image stands where nothing was found.
    assert (found.correct[0] <= found.clean).all()
    assert (found.correct[1] <= found.correct[0]).all()
    still = np.argmax(logits_fn(found.adversarial), 1) == labels
    np.testing.assert_array_equal(still, found.correct[-1])
    np.testing.assert_array_equal(found.adversarial[still], images[still])
    np.testing.assert_array_equal(found.adversarial[~found.clean], images[~found.clean])
    assert 0 < found.robust_accuracy < found.clean_accuracy
    assert found.robust_accuracy == np.asarray(still).mean()
    assert found.warnings == ()


def test_its_robust_accuracy_is_the_closed_form_of_a_linear_model(model):
    _, images, labels = model
    # Far from the walls of the box: the margin against the dual norm of the weights' difference.
    images, labels = (0.25 + images / 2).astype(np.float32), labels % 2
    weights = np.linalg.lstsq(images - 0.5, 2.0 * labels - 1, rcond=None)[0].astype(np.float32)
    margins = (2.0 * labels - 1) * ((images - 0.5) @ weights)
    # Between two examples, where rounding decides nothing.
    radius = float(np.sort(margins)[41:43].mean() / np.abs(weights).sum())
    robust = margins > radius * np.abs(weights).sum()
    suite = {"climb": climb(questions=10, radius=radius)}
    found = evaluate(
        KEY, lambda x: ((x - 0.5) @ weights)[:, None] * jnp.array([0.0, 1.0]), images, labels, suite, check=False
    )
    assert 0.1 < robust.mean() < found.clean_accuracy - 0.1
    np.testing.assert_array_equal(found.correct[0], robust)


@pytest.mark.parametrize("batch_size", [1, 8, 500])
def test_the_size_of_a_batch_changes_nothing(model, found, batch_size):
    if batch_size == 1:
        model = model[0], model[1][:9], model[2][:9]
    other = evaluate(
        KEY, *model, {"climb": climb(), "pgd": attacks.pgd(geometry.linf(), RADIUS, steps=3)}, batch_size=batch_size
    )
    count = len(model[1])
    np.testing.assert_array_equal(other.correct, found.correct[:, :count])
    np.testing.assert_allclose(other.adversarial, found.adversarial[:count], rtol=0, atol=1e-6)


def test_another_key_is_another_search(model, found):
    other = evaluate(jax.random.key(4), *model, {"climb": climb()})
    assert (other.adversarial != found.adversarial).any()


def test_nobody_is_asked_more_than_needed(model):
    """Questions are those of a loop over examples that stops at the first success."""
    logits_fn, images, labels = model
    images, labels = images[:12], labels[:12]
    search = climb(radius=0.06)
    found = evaluate(KEY, logits_fn, images, labels, {"climb": search}, batch_size=8)
    expected, own = 0, jax.random.fold_in(jax.random.split(KEY, 3)[1], 0)
    start = jax.jit(lambda key, image, label, run: search.init(jax.random.fold_in(key, run), image, label, None, run))
    tell = jax.jit(search.tell)
    slope = jax.jit(
        jax.value_and_grad(lambda x, y: (search.loss(None, logits_fn(x[None])[0], y), logits_fn(x[None])[0])[0])
    )
    for number in np.flatnonzero(found.clean):
        image, label, broken = images[number], labels[number], False
        for run in range(2):
            state = start(jax.random.fold_in(own, number), image, label, run)
            while not (state.done or broken):
                value, gradient = slope(state.point, label)
                answer = attacks.search.Answer(logits_fn(state.point[None])[0], value, gradient)
                state, expected = tell(state, image, label, answer), expected + 1
                broken = broken or bool(state.broken)
            if broken:
                break
        assert broken != found.correct[0, number]
    assert found.questions[0] == expected
    assert expected < 12 * found.clean.sum()


def test_one_program_whatever_the_number_of_images(model):
    logits_fn, images, labels = model
    search, traced = climb(), []

    def counted(images):
        traced.append(len(images))
        return logits_fn(images)

    for count in (16, 83, 40):
        evaluate(KEY, counted, images[:count], labels[:count], {"climb": search}, batch_size=16, check=False)
    assert set(traced) == {16}
    # Of the clean images, of one search's step: one program each, traced a fixed number of times.
    assert len(traced) <= 6


def test_killed_and_started_again_is_as_if_never_killed(model, found, tmp_path, monkeypatch):
    suite = {"climb": climb(), "pgd": attacks.pgd(geometry.linf(), RADIUS, steps=3)}
    monkeypatch.setattr(evaluation_file, "EVERY_SECONDS", 0.0)
    for stop_at in ("climb", "pgd"):
        file = tmp_path / f"{stop_at}.npz"

        def kill(standing, stop_at=stop_at):
            if standing.name == stop_at and standing.settled > standing.total // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(KEY, *model, suite, batch_size=8, file=file, progress=kill)
        seen = []
        again = evaluate(KEY, *model, suite, batch_size=8, file=file, progress=seen.append)
        np.testing.assert_array_equal(again.correct, found.correct)
        np.testing.assert_array_equal(again.questions, found.questions)
        np.testing.assert_allclose(again.adversarial, found.adversarial, rtol=0, atol=1e-6)
        assert [standing.name for standing in seen].count("climb") < 10 or stop_at == "climb"
        assert seen[0].name == stop_at
        assert seen[0].settled > seen[0].total // 3
        # Once it is through, everything is read.
        finished = evaluate(KEY, *model, suite, batch_size=8, file=file, progress=lambda _: pytest.fail("asked again"))
        np.testing.assert_array_equal(finished.correct, found.correct)


@pytest.mark.slow
def test_a_process_killed_outright_goes_on(tmp_path):
    """By signal, in the middle of a search; what a third process finds without a file is the same."""
    program = textwrap.dedent(
        """
        import os, signal, sys
        import jax, jax.numpy as jnp, numpy as np
        from jaxrobust import attacks, geometry
        from jaxrobust.attacks import evaluation_file
        evaluation_file.EVERY_SECONDS = 0.0
        file, kill = sys.argv[1] or None, sys.argv[2] == "kill"
        random = np.random.default_rng(0)
        weights = jnp.asarray(random.standard_normal((16, 5)), jnp.float32)
        images = random.random((60, 16)).astype(np.float32)
        logits_fn = lambda x: (x - 0.5) @ weights
        labels = np.asarray(logits_fn(images)).argmax(1)
        def progress(standing):
            if kill and standing.name == "square" and standing.settled > 3:
                os.kill(os.getpid(), signal.SIGKILL)
        apgd, square = attacks.apgd(geometry.linf(), 0.02, steps=5), attacks.square(geometry.linf(), 0.04, queries=40)
        found = attacks.evaluate(
            jax.random.key(0), logits_fn, images, labels, [apgd, square], batch_size=8, file=file, progress=progress
        )
        np.savez(sys.argv[3], correct=found.correct, adversarial=found.adversarial)
        """
    )
    out, file = [str(tmp_path / f"{name}.npz") for name in ("with", "without")], str(tmp_path / "state.npz")
    killed = subprocess.run([sys.executable, "-c", program, file, "kill", out[0]], check=False)
    assert killed.returncode == -9
    for name, kept in zip(out, (file, ""), strict=True):
        subprocess.run([sys.executable, "-c", program, kept, "", name], check=True)
    one, two = (np.load(name) for name in out)
    np.testing.assert_array_equal(one["correct"], two["correct"])
    np.testing.assert_array_equal(one["adversarial"], two["adversarial"])


def test_a_file_of_another_evaluation_is_refused(model, tmp_path):
    logits_fn, images, labels = model
    file = tmp_path / "state.npz"
    arguments = {"batch_size": 16, "file": file, "check": False}
    evaluate(KEY, logits_fn, images[:16], labels[:16], {"climb": climb()}, **arguments)
    kept = file.read_bytes()
    other = jax.tree_util.Partial(logits_fn.func, 1.01 * logits_fn.args[0])
    for key, model_, data, suite in (
        (jax.random.key(9), logits_fn, images[:16], climb()),
        (KEY, logits_fn, images[1:17], climb()),
        (KEY, logits_fn, images[:16], climb(radius=0.05)),
        (KEY, logits_fn, images[:16], climb(questions=7)),
        (KEY, logits_fn, images[:16], climb(runs=3)),
        (KEY, logits_fn, images[:16], attacks.pgd(geometry.linf(), RADIUS, steps=3)),
        # Right and wrong on the same images, but another model.
        (KEY, other, images[:16], climb()),
    ):
        with pytest.raises(ValueError, match="belongs to another evaluation"):
            evaluate(key, model_, data, labels[:16], {"climb": suite}, **arguments)
    evaluate(KEY, logits_fn, images[:16], labels[:16], {"climb": climb()}, **arguments)
    assert file.read_bytes() == kept
    array = tmp_path / "array.npy"
    np.save(array, images)
    for damaged in (b"PK\x03\x04 cut short", b"", array.read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="holds no evaluation"):
            evaluate(KEY, logits_fn, images[:16], labels[:16], {"climb": climb()}, **arguments)


def test_a_file_of_a_masked_model_is_not_that_of_its_stand_in(model, tmp_path):
    """Both say the same of every image; the stand-in, which the checks advise, has gradients."""
    logits_fn, images, labels = model

    def masked(images):
        return logits_fn(jnp.round(16 * images) / 16)

    def smooth(images):
        return logits_fn(images + jax.lax.stop_gradient(jnp.round(16 * images) / 16 - images))

    arguments = {"batch_size": 16, "file": tmp_path / "state.npz", "check": False}
    evaluate(KEY, masked, images[:16], labels[:16], {"climb": climb()}, **arguments)
    with pytest.raises(ValueError, match="belongs to another evaluation"):
        evaluate(KEY, smooth, images[:16], labels[:16], {"climb": climb()}, **arguments)
    evaluate(KEY, masked, images[:16], labels[:16], {"climb": climb()}, **arguments)


def test_a_file_that_cannot_be_written_is_told_before_anything_is_attacked(model, tmp_path):
    logits_fn, images, labels = model
    (tmp_path / "taken").write_text("")
    file = tmp_path / "taken" / "state.npz"
    with pytest.raises(OSError, match="taken"):
        evaluate(KEY, logits_fn, images, labels, climb(), file=file, progress=lambda _: pytest.fail("attacked"))


def test_what_was_told_before_a_kill_is_told_after_it(model, tmp_path):
    logits_fn, images, labels = model
    suite = {"liar": liar(lambda image: image), "climb": climb()}
    file = tmp_path / "state.npz"

    def kill(standing):
        if standing.name == "climb":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(KEY, logits_fn, images, labels, suite, file=file, progress=kill)
    with pytest.warns(UserWarning, match="liar: .* are not counted"):
        evaluate(KEY, logits_fn, images, labels, suite, file=file)


def liar(lie, radius=RADIUS):
    """A search that claims success with whatever is made of an image."""

    def init(key, image, label, logits, run):
        return SearchState(image, lie(image), jnp.bool_(False), jnp.bool_(False), ())

    def tell(state, image, label, answer):
        return state._replace(broken=jnp.bool_(True))

    return Search("liar", geometry.linf(), radius, init, tell)


@pytest.mark.parametrize(
    ("image", "lie", "counted"),
    [
        (0.0, RADIUS * (1 + 5e-7), True),
        (0.0, RADIUS * (1 + 1e-5), False),
        (0.0, -RADIUS / 2, False),
        (1.0, 1 + RADIUS / 2, False),
        (1.0, 1 - RADIUS / 2, True),
        (0.5, np.nan, False),
    ],
)
@pytest.mark.filterwarnings("ignore:.*are not counted", "ignore:.*not finite")
def test_norm_and_box_to_a_millionth(image, lie, counted):
    """Of one feature; whatever is not the clean image is misclassified."""

    def logits_fn(images):
        moved = jnp.abs(images - image) - 1e-3
        return jnp.concatenate([-moved, moved], 1)

    for attack in (
        liar(lambda _: jnp.full(1, lie, jnp.float32)),
        Bounded("other", geometry.linf(), RADIUS, lambda k, f, x, y: jnp.full_like(x, lie)),
    ):
        found = evaluate(KEY, logits_fn, np.full((3, 1), image, np.float32), np.zeros(3, int), attack, check=False)
        assert found.correct[0].tolist() == [not counted] * 3


def test_logits_that_are_not_finite_are_wrong_and_told(model):
    """Whatever the label: off the clean images this model gives no number."""
    logits_fn, images, labels = model

    def fragile(points):
        on_grid = jnp.all(points * 16 == jnp.round(points * 16), axis=1, keepdims=True)
        return jnp.where(on_grid, logits_fn(points), jnp.nan)

    with pytest.warns(UserWarning, match="apgd: logits of .* images were not finite, which counts as wrong"):
        found = evaluate(KEY, fragile, images, labels, attacks.apgd(geometry.linf(), RADIUS, steps=1), check=False)
    assert not found.correct[0].any()


@pytest.mark.parametrize("ball", ["l1", "linf"])
def test_what_is_measured_is_what_was_attacked(ball):
    """Images of another precision are rounded first: in l1 the rounding of many pixels is a distance too."""
    random = np.random.default_rng(0)
    images, weights = random.integers(0, 256, (12, 192)) / 255.0, random.standard_normal((192, 3)).astype(np.float32)
    radius = {"l1": 1.0, "linf": 0.02}[ball]
    attack = attacks.apgd(getattr(geometry, ball)(), radius, steps=3, start=attacks.no_start)
    labels = np.argmax((images - 0.5) @ weights, 1)

    def robust(dtype):
        return evaluate(KEY, lambda x: (x - 0.5) @ weights, images.astype(dtype), labels, attack, check=False)

    found = robust(np.float32)
    assert 0 < found.robust_accuracy < 1
    np.testing.assert_array_equal(robust(np.float64).correct, found.correct)
    assert robust(np.float16).warnings == ()


@pytest.mark.parametrize("fault", ["far", "outside", "right"])
def test_what_does_not_hold_is_taken_back(model, fault):
    """A search that claims success with an image too far away, out of the box, or rightly classified."""
    logits_fn, images, labels = model

    lies = {"far": lambda x: jnp.clip(x + 0.2, 0, 1), "outside": lambda x: x - RADIUS / 2, "right": lambda x: x}
    with pytest.warns(UserWarning, match="liar: .* are not counted"):
        found = evaluate(KEY, logits_fn, images, labels, liar(lies[fault]), batch_size=16, check=False)
    np.testing.assert_array_equal(found.correct[0], found.clean)
    np.testing.assert_array_equal(found.adversarial, images)


def test_a_model_that_changes_is_asked_as_it_is(model):
    """Weights of a module are arguments of the programs, not constants that the first evaluation left behind."""
    _, images, labels = model
    network = nnx.Linear(64, 10, rngs=nnx.Rngs(0))
    suite = {"climb": climb(questions=2)}

    def accuracy():
        return evaluate(KEY, network, images[:16], labels[:16], suite, batch_size=16, check=False).clean

    before = accuracy()
    network.kernel[...] = -network.kernel[...]
    np.testing.assert_array_equal(accuracy(), np.argmax(network(images[:16]), 1) == labels[:16])
    assert (accuracy() != before).any()


def test_parameters_of_one_device_go_to_all(model):
    logits_fn, images, labels = model
    bound = jax.tree_util.Partial(logits_fn.func, jax.device_put(logits_fn.args[0], jax.devices()[0]))
    found = evaluate(KEY, bound, images[:16], labels[:16], {"climb": climb()}, batch_size=16, check=False)
    assert found.clean.any()


def test_transfer_asks_the_surrogate_alone(model):
    logits_fn, images, labels = model
    attack = attacks.transfer(attacks.pgd(geometry.linf(), RADIUS, steps=3), logits_fn)
    direct = attacks.pgd(geometry.linf(), RADIUS, steps=3)
    found = attack(KEY, lambda images: pytest.fail("asked"), images[:5], labels[:5])
    np.testing.assert_array_equal(found, direct(KEY, logits_fn, images[:5], labels[:5]))
    stepped = evaluate(KEY, lambda x: jnp.round(20 * logits_fn(x)), images, labels, {"transfer": attack}, check=False)
    assert stepped.robust_accuracy < stepped.clean_accuracy


@pytest.mark.filterwarnings("ignore:climb.*rightly when asked again")
def test_draws_are_counted_and_follow_the_example(model):
    """Of a model that draws: what is found hangs on an example's key, not on its place."""
    _, images, labels = model
    logits_fn = model[0]
    noisy = Randomized(lambda keys, x: logits_fn(x + 0.01 * jax.vmap(lambda k: jax.random.normal(k, (64,)))(keys)))
    found = [
        evaluate(KEY, noisy, images, labels, {"climb": replace(climb(), draws=4)}, batch_size=size, check=False)
        for size in (16, 40)
    ]
    np.testing.assert_array_equal(found[0].questions, found[1].questions)
    np.testing.assert_allclose(found[0].adversarial, found[1].adversarial, rtol=0, atol=1e-6)
    assert found[0].questions[0] % 4 == 0
    with pytest.raises(ValueError, match="pgd cannot attack a model that draws"):
        evaluate(KEY, noisy, images, labels, {"pgd": attacks.pgd(geometry.linf(), 0.1, steps=1)})


def test_every_question_has_a_draw_of_its_own(model):
    """Of two images, two runs of four answers, two draws each: the places ask under keys that never return."""
    seen = []

    def draw(keys, x):
        jax.debug.callback(
            lambda data: seen.extend(row.tobytes() for row in np.asarray(data)), jax.random.key_data(keys)
        )
        return jnp.array([1.0, 0.0]) + 0 * x[:, :2]

    search = attacks.apgd(geometry.linf(), 0.01, steps=3, restarts=2, draws=2)
    found = evaluate(KEY, Randomized(draw), model[1][:2], np.zeros(2, int), search, check=False)
    jax.effects_barrier()
    assert found.questions[0] == 2 * 2 * 4 * 2
    assert len(set(seen)) >= 2 * 2 * 4 * 2


def test_a_look_is_a_question_too(model):
    """Two targets, three steps, a gradient and a look each, of every image that is right."""
    logits_fn, images, labels = model
    found = evaluate(
        KEY, logits_fn, images, labels, attacks.fab(geometry.linf(), 1e-9, steps=3, targets=2), check=False
    )
    assert found.questions[0] == 2 * 3 * 2 * found.clean.sum()


def test_without_a_radius_the_closest_image_is_found(model):
    logits_fn, images, labels = model
    attack = attacks.fab(geometry.linf(), np.inf, steps=5, targets=1)
    found = evaluate(KEY, logits_fn, images[:9], labels[:9], attack, check=False)
    direct = attack(KEY, logits_fn, jnp.asarray(images[:9]), jnp.asarray(labels[:9]))
    np.testing.assert_allclose(found.adversarial, direct, rtol=0, atol=1e-6)
    first = attacks.fab(geometry.linf(), np.inf, steps=1, targets=1)(KEY, logits_fn, images[:9], labels[:9])
    assert not np.allclose(found.adversarial, first, rtol=0, atol=1e-4)


def test_compilation_is_left_out_of_the_seconds(model):
    """One that is said to have taken 100 seconds."""

    def compiled(standing):
        if standing.settled == standing.total:
            jax.monitoring.record_event_duration_secs("/jax/core/compile/as_if", 100.0)

    found = evaluate(KEY, *model, climb(), progress=compiled, check=False)
    assert found.compile_seconds[0] > 100
    assert found.seconds[0] < 0


def test_attacks_of_one_name_are_all_kept(model):
    suite = [climb(name=name) for name in ("a", "a", "a 1")]
    found = evaluate(KEY, model[0], model[1][:8], model[2][:8], suite, check=False)
    assert found.names == ("a", "a 1", "a 1 2")


@pytest.mark.parametrize("layer", ["batch norm", "dropout"])
def test_a_module_in_training_mode_is_refused(model, layer):
    _, images, labels = model

    class Network(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.dense = nnx.Linear(64, 10, rngs=rngs)
            self.last = nnx.BatchNorm(10, rngs=rngs) if layer == "batch norm" else nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.last(self.dense(x))

    network = Network()
    with pytest.raises(ValueError, match=r"in training mode does: call its eval\(\) first"):
        evaluate(KEY, network, images, labels, climb())
    network.eval()
    assert evaluate(KEY, network, images, labels, climb(questions=2)).names == ("climb",)


def test_recorded_starts_go_to_their_examples(model):
    logits_fn, images, labels = model
    starts = np.clip(images + RADIUS * np.sign(np.random.default_rng(0).standard_normal(images.shape)), 0, 1)

    def init(key, image, label, logits, run, start):
        return SearchState(start, start, jnp.bool_(False), jnp.bool_(False), ())

    def tell(state, image, label, answer):
        return state._replace(broken=jnp.argmax(answer.logits) != label, done=jnp.bool_(True))

    replay = Search("replay", geometry.linf(), 1.01 * RADIUS, init, tell, start=starts.astype(np.float32))
    found = evaluate(KEY, logits_fn, images, labels, {"replay": replay}, batch_size=16)
    broken = found.clean & (np.argmax(logits_fn(starts.astype(np.float32)), 1) != labels)
    np.testing.assert_array_equal(found.correct[0], found.clean & ~broken)
    np.testing.assert_allclose(found.adversarial[broken], starts[broken], rtol=1e-6)
    with pytest.raises(ValueError, match="start must be recorded images"):
        evaluate(KEY, logits_fn, images[:4], labels[:4], {"replay": replay}, check=False)


def doubts(model, logits_fn=None, **changes):
    images, labels = model[1][:16], model[2][:16]
    with pytest.warns(UserWarning, match=".") as told:
        evaluate(KEY, logits_fn or model[0], images, labels, {"climb": climb(questions=2)}, batch_size=16, **changes)
    return " ".join(str(one.message) for one in told)


def test_doubts_are_told(model):
    logits_fn = model[0]
    assert "pass logits, without the softmax" in doubts(model, lambda x: jax.nn.softmax(20 * logits_fn(x)))
    assert "of its batch" in doubts(model, lambda x: logits_fn(x - x.mean(0)))
    noisy = Randomized(lambda keys, x: logits_fn(x + 0.1 * jax.vmap(lambda k: jax.random.normal(k, (64,)))(keys)))
    assert "the model draws" in doubts(model, noisy)
    assert "gradient of exactly 0" in doubts(model, lambda x: logits_fn(jnp.round(4 * x) / 4))


def test_flat_images_are_counted_where_they_are_classified_rightly(model):
    """Every image is flat, but a wrong one cannot be climbed from anyway."""
    logits_fn, images, labels = model

    def steps(x):
        return logits_fn(jnp.round(4 * x) / 4)

    told = doubts((steps, images, np.where(np.arange(len(labels)) % 2 == 0, labels, 9 - labels)))
    right = np.argmax(steps(images[:16]), 1) == np.where(np.arange(16) % 2 == 0, labels[:16], 9 - labels[:16])
    assert 0 < right.sum() < 16
    assert f"{right.sum()} of 16 images have a gradient of exactly 0" in told


def test_gradients_that_are_not_finite_are_a_doubt(model, tmp_path):
    """A root at the black pixels that every digit has; the file is read again, and not by a model without one."""
    logits_fn, images, labels = model[0], model[1][:16], model[2][:16]

    def root(x):
        return logits_fn(jnp.sqrt(x**2))

    right = np.argmax(root(images), 1) == labels
    assert 0 < right.sum() < 16
    assert f"{right.sum()} of 16 images have a gradient that is not finite" in doubts(model, root)
    arguments = {"batch_size": 16, "file": tmp_path / "state.npz", "check": False}
    suite = {"climb": climb(questions=2, radius=0.1)}
    found, again = (evaluate(KEY, root, images, labels, suite, **arguments) for _ in range(2))
    np.testing.assert_array_equal(found.correct, again.correct)
    # What is not finite is 0 to a search, and the rest of the gradient breaks images all the same.
    noise = evaluate(KEY, root, images, labels, {"climb": climb(questions=1, radius=0.1)}, check=False)
    assert found.robust_accuracy < noise.robust_accuracy
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(KEY, logits_fn, images, labels, suite, **arguments)


def test_a_model_behind_a_callback_has_no_gradient_to_doubt(model, tmp_path):
    """And its state file is read again, but not by a model of the same logits that has one."""
    logits_fn, images, labels = model[0], model[1][:12], model[2][:12]

    def behind(x):
        weights = jax.ShapeDtypeStruct((len(x), 10), jnp.float32)
        return jax.pure_callback(lambda x: np.asarray(logits_fn(jnp.asarray(x))), weights, x)

    square, file = {"square": attacks.square(geometry.linf(), RADIUS, queries=20)}, tmp_path / "state.npz"
    found = evaluate(KEY, behind, images, labels, square, file=file)
    again = evaluate(KEY, behind, images, labels, square, file=file, progress=lambda _: pytest.fail("asked again"))
    np.testing.assert_array_equal(found.correct, again.correct)
    assert not found.warnings
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(KEY, logits_fn, images, labels, square, file=file)


def test_square_that_helps_is_a_doubt():
    correct = np.array([[True] * 10, [True] * 9 + [False]])
    assert "no gradient had broken" in attacks.checks.after_attacks(["apgd_ce", "square"], [False, True], correct)[0]
    assert attacks.checks.after_attacks(["apgd_ce", "fab_t"], [False, False], correct) == []


def test_gradients_of_a_model_that_draws_are_means(model):
    """Of as many draws as asked for, each under a key of its own."""
    logits_fn, images, labels = model

    def draw(keys, x):
        return logits_fn(x * jax.vmap(lambda key: jax.random.normal(key, (64,)))(keys))

    def tell(state, image, label, answer):
        return state._replace(memory=answer.gradient)

    def asked(draws):
        recorder = Search("recorder", geometry.linf(), 1.0, None, tell, loss=climb().loss, draws=draws)
        no = jnp.zeros(6, bool)
        states = SearchState(images[:6], images[:6], no, no, images[:6])
        keys = jax.random.split(KEY, 6)
        return attacks.search.step(recorder, Randomized(draw), keys, states, images[:6], labels[:6]).memory, keys

    found, keys = asked(4)
    loss, own = attacks.losses.cross_entropy, attacks.search.folded(keys, 0)
    each = [
        jax.grad(lambda x, i=i: loss(draw(attacks.search.folded(own, i), x), labels[:6]).sum())(images[:6])
        for i in range(4)
    ]
    np.testing.assert_allclose(found, sum(each) / 4, rtol=1e-4, atol=1e-6)
    assert np.abs(found - each[0]).max() > 0.01


def test_wilson():
    found = attacks.Robustness(("a",), np.ones(10, bool), np.arange(10)[None] < 8, *[np.zeros(1)] * 4, ())
    # Worked by hand for 8 of 10.
    np.testing.assert_allclose(found.interval(), (0.4901625, 0.9433178), atol=1e-6)
    assert found.robust_accuracy == 0.8
    with pytest.raises(ValueError, match="confidence must lie in"):
        found.interval(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.full((4, 64), 1.5, np.float32)}, r"images must lie in \[0, 1\], got 1.5 to 1.5"),
        ({"images": np.full((4, 64), np.nan, np.float32)}, r"images must lie in \[0, 1\]"),
        ({"images": np.zeros((4, 64), np.uint8)}, "divide by 255"),
        ({"labels": np.zeros(3, int)}, r"labels must be \[4\]"),
        ({"labels": np.zeros(4, np.float32)}, "labels must be classes"),
        ({"labels": np.full(4, 11)}, "the classes of the logits, got 11"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4.5}, "batch_size must be a whole number, got 4.5"),
        (
            {"images": np.zeros((0, 64), np.float32), "labels": np.zeros(0, int)},
            "images must be at least one, got none",
        ),
        ({"images": np.zeros(64, np.float32), "labels": np.int32(3)}, r"labels \[example\], got \(64,\) and \(\)"),
        ({"suite": []}, "suite must hold an attack, got none"),
        ({"suite": "standard"}, "suite must be attacks, such as .*, got 'standard' for attack 0"),
        ({"suite": [lambda keys, f, x, y: x[:, :3]]}, r"must return images of shape \(.*, 64\), got shape \(.*, 3\)"),
        ({"logits_fn": "model"}, "logits_fn must be a function or a Randomized, got 'model'"),
        ({"logits_fn": lambda x: x.sum(1)}, r"must return logits \[.*, class\] of .* images, got shape \(.*,\)"),
        (
            {"logits_fn": lambda x: x[:, None]},
            r"must return logits \[.*, class\] of .* images, got shape \(.*, 1, 64\)",
        ),
        ({"logits_fn": lambda x: x[:1]}, r"must return logits \[.*, class\] of .* images, got shape \(1, 64\)"),
        ({"logits_fn": lambda x: (x, {})}, r"must return logits \[.*, class\] of .* images, got a tuple"),
        ({"logits_fn": lambda x: x.astype(jnp.int32)}, "logits must be of floating point, got int32"),
        ({"logits_fn": lambda x: np.asarray(x)}, r"must be written in jax\.numpy"),
        ({"logits_fn": lambda x: jnp.full((len(x), 10), jnp.nan)}, "logits must be finite, got 4 examples"),
    ],
)
def test_bad_input_is_refused(model, change, message):
    good = {"logits_fn": model[0], "images": model[1][:4], "labels": model[2][:4], "suite": [climb()]}
    with pytest.raises(ValueError, match=message):
        evaluate(KEY, **(good | change))


def test_a_key_is_one():
    with pytest.raises(ValueError, match=r"key must be one of jax\.random\.key, got 7"):
        evaluate(7, lambda x: x, np.zeros((1, 2), np.float32), np.zeros(1, int), climb())
