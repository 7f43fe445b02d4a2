"""Robust accuracy where it is known: a linear model, whose every margin is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry
from jaxrobust.typing import Batch, Source

COUNT = 23
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = np.asarray(RNG.uniform(0.4, 0.6, (COUNT, 3, 3, 1)), np.float32)
WEIGHT = np.asarray(RNG.standard_normal((3, 3, 1)), np.float32)
LABELS = np.asarray(RNG.integers(0, 2, COUNT), np.int32)
SCORES = ((IMAGES - 0.5) * WEIGHT).sum((1, 2, 3))
# How far each example is from the boundary in l-infinity, negative where it is misclassified.
MARGINS = (2 * LABELS - 1) * SCORES / np.abs(WEIGHT).sum()
RADIUS = float(np.median(MARGINS[MARGINS > 0]))


def score(weight, images):
    value = jnp.sum((images - 0.5) * weight, axis=(1, 2, 3))
    return jnp.stack([jnp.zeros_like(value), value], axis=1)


def model(weight=WEIGHT):
    return jax.tree_util.Partial(score, jnp.asarray(weight))


def ordered(place=lambda batch: batch):
    """The examples in order; rows past the end repeat the last one."""

    def batch(state, step, rows, size):
        number = step * size + rows
        index = jnp.minimum(number, COUNT - 1)
        weight = jnp.where(number < COUNT, 1.0, 0.0)
        return place(Batch(state[0][index], state[1][index], index, weight))

    return Source(lambda key: (jnp.asarray(IMAGES), jnp.asarray(LABELS)), batch, COUNT, "0" * 64)


def linf_pgd(radius, steps=2):
    return attacks.pgd(geometry.linf(), radius, steps=steps, start=attacks.no_start)


def share(condition):
    return float(np.mean(condition))


def test_the_radius_separates():
    assert 0.2 < share(RADIUS < MARGINS) < share(MARGINS > 0) < 0.9


def test_the_accuracy_of_a_linear_model():
    found = attacks.accuracy({"pgd": linf_pgd(0.999 * RADIUS)}, batch_size=8)(KEY, model(), ordered())
    assert found.metrics == {"clean": share(MARGINS > 0), "pgd": share(0.999 * RADIUS < MARGINS)}
    assert (found.curve, found.gallery) == ({}, None)
    larger = attacks.accuracy({"pgd": linf_pgd(1.001 * RADIUS)}, batch_size=8)(KEY, model(), ordered())
    assert larger.metrics["pgd"] == pytest.approx(found.metrics["pgd"] - 1 / COUNT)


def test_the_curve_of_a_linear_model():
    radii = (0.0, 0.3 * RADIUS, 0.999 * RADIUS, 1.5 * RADIUS)
    evaluate = attacks.accuracy(curve=linf_pgd, radii=radii, batch_size=COUNT, curve_examples=17)
    found = evaluate(KEY, model(), ordered())
    assert found.curve == {radius: share(MARGINS[:17] > radius) for radius in radii}
    assert found.metrics == {"clean": share(MARGINS > 0)}
    assert len(set(found.curve.values())) == 4


def test_the_model_must_be_right_on_the_clean_image_too():
    def helpful(keys, logits_fn, images, labels):
        side = jnp.where(labels == 1, 10.0, -10.0)[:, None, None, None]
        return images + side * jnp.sign(jnp.asarray(WEIGHT))

    attacked = helpful(None, None, IMAGES, LABELS)
    assert np.all(np.argmax(model()(attacked), -1) == LABELS)
    found = attacks.accuracy({"helpful": helpful}, batch_size=5)(KEY, model(), ordered())
    assert found.metrics["helpful"] == found.metrics["clean"] == share(MARGINS > 0) < 1


@pytest.mark.parametrize("examples", [None, 10, 1000])
def test_only_the_first_examples(examples):
    found = attacks.accuracy({"pgd": linf_pgd(RADIUS / 2)}, batch_size=8, examples=examples)(KEY, model(), ordered())
    taken = MARGINS[:examples]
    assert found.metrics == {"clean": share(taken > 0), "pgd": share(taken > RADIUS / 2)}
    assert share(MARGINS[:10] > 0) != share(MARGINS > 0)


def test_padding_is_not_counted():
    """Also where the source pads at a place of its own: only the weight says what is an example."""

    def odd(batch):
        return batch._replace(weight=jnp.where(batch.index % 2 == 1, batch.weight, 0.0))

    found = attacks.accuracy(batch_size=8)(KEY, model(), ordered(place=odd))
    assert found.metrics == {"clean": share(MARGINS[1::2] > 0)}
    assert found.metrics["clean"] != share(MARGINS > 0)


def noisy(radius):
    return attacks.pgd(geometry.linf(), radius, steps=1, step_size=0.1 * radius)


def test_the_batch_size_changes_nothing():
    def build(size):
        return attacks.accuracy({"noisy": noisy(2.0 * RADIUS)}, batch_size=size, gallery=3)

    source, in_parts = ordered(), build(4)
    whole, parts = build(COUNT)(KEY, model(), source), in_parts(KEY, model(), source)
    assert whole.metrics == parts.metrics
    jax.tree.map(np.testing.assert_array_equal, whole.gallery, parts.gallery)
    other = in_parts(jax.random.key(1), model(), source)
    assert not np.array_equal(other.gallery.adversarial, parts.gallery.adversarial)


def test_new_parameters_do_not_compile_anew():
    traces = []
    attack, source = linf_pgd(RADIUS / 2, steps=1), ordered()
    evaluate = attacks.accuracy({"pgd": attack}, batch_size=8)

    def counted(weight, images):
        traces.append(None)
        return score(weight, images)

    def run(weight):
        return evaluate(KEY, jax.tree_util.Partial(counted, jnp.asarray(weight)), source).metrics

    assert run(WEIGHT) == {"clean": share(MARGINS > 0), "pgd": share(MARGINS > RADIUS / 2)}
    once = len(traces)
    assert run(-WEIGHT) == {"clean": share(MARGINS < 0), "pgd": share(MARGINS < -RADIUS / 2)}
    assert len(traces) == once
    # Parameters that hide in a closure are another function each time: the count sees it.
    evaluate(KEY, lambda images: counted(jnp.asarray(WEIGHT), images), source)
    assert len(traces) == 2 * once


def test_a_plain_function_will_do():
    weight = jnp.asarray(WEIGHT)
    found = attacks.accuracy(batch_size=8)(KEY, lambda images: score(weight, images), ordered())
    assert found.metrics == {"clean": share(MARGINS > 0)}


@pytest.mark.parametrize("by_curve", [False, True])
def test_the_gallery(by_curve):
    options = (
        {"curve": linf_pgd, "radii": (0.0, 2 * RADIUS)} if by_curve else {"attacks": {"pgd": linf_pgd(2 * RADIUS)}}
    )
    gallery = attacks.accuracy(**options, batch_size=8, gallery=5)(KEY, model(), ordered()).gallery
    assert all(isinstance(part, np.ndarray) for part in gallery)
    side = (2 * LABELS[:5] - 1)[:, None, None, None]
    np.testing.assert_array_equal(gallery.images, IMAGES[:5])
    np.testing.assert_allclose(gallery.adversarial, IMAGES[:5] - 2 * RADIUS * side * np.sign(WEIGHT), atol=1e-6)
    np.testing.assert_array_equal(gallery.labels, LABELS[:5])
    np.testing.assert_array_equal(gallery.clean, SCORES[:5] > 0)
    np.testing.assert_array_equal(gallery.attacked == gallery.labels, MARGINS[:5] > 2 * RADIUS)
    assert not np.array_equal(gallery.attacked, gallery.clean)


def test_a_batch_that_is_spread_over_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def place(batch):
        return jax.lax.with_sharding_constraint(batch, spread)

    evaluate = attacks.accuracy({"pgd": linf_pgd(RADIUS / 2)}, batch_size=8)
    found = evaluate(KEY, model(), ordered(place=place))
    assert found.metrics == evaluate(KEY, model(), ordered()).metrics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"examples": 0}, "examples must be at least 1, got 0"),
        ({"curve_examples": 0}, "curve_examples must be at least 1, got 0"),
        ({"gallery": -1}, "gallery must be at least 0, got -1"),
        ({"gallery": 4}, "a gallery of 4 needs an attack"),
        ({"radii": (0.1,)}, "radii need a curve"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.accuracy(**options)
