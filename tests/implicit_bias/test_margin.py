"""Margins and robust radii, and what attacks make of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry
from jaxrobust.implicit_bias import margin, robust_radius

BALLS = {
    "linf": geometry.linf(),
    "l2": geometry.l2(),
    "l1": geometry.l1(),
    "l3": geometry.lp(3.0),
    "fourier_linf": geometry.fourier_linf(),
    "fourier_l1": geometry.fourier_l1(),
    "weighted": geometry.fourier_linf(geometry.contrast_sensitivity(8.0)),
}
every = pytest.mark.parametrize("name", BALLS)
SHAPE, CLASSES = (4, 4, 1), 3
MAPS = jax.random.normal(jax.random.key(0), (CLASSES, *SHAPE))
OFFSET = jnp.array([0.02, -0.01, 0.0])


def classifier(images):
    """Affine, around the middle of the box."""
    return jnp.tensordot(images - 0.5, MAPS, ((1, 2, 3), (1, 2, 3))) + OFFSET


def near_the_middle(count, spread):
    images = 0.5 + spread * jax.random.normal(jax.random.key(1), (count, *SHAPE))
    return images, jnp.argmax(classifier(images), 1)


def test_by_hand():
    inputs, labels = jnp.array([[1.0, 2.0], [-3.0, 0.0]]), jnp.array([1, 0])
    weights = jnp.array([1.0, 2.0])
    assert float(margin(weights, inputs, labels, geometry.l1())) == pytest.approx(1.0)
    assert float(margin(weights, inputs, labels, geometry.linf())) == pytest.approx(1.5)
    assert float(margin(weights, inputs, 1 - labels, geometry.linf())) == pytest.approx(-2.5)
    assert float(margin(7 * weights, inputs, 2 * labels - 1, geometry.l1())) == pytest.approx(1.0)


def test_two_classes_agree_with_the_margin():
    weights = jax.random.normal(jax.random.key(2), SHAPE)
    images = jax.random.normal(jax.random.key(3), (20, *SHAPE))
    labels = (jnp.tensordot(images, weights, 3) > 0).astype(jnp.int32)

    def logits_fn(x):
        score = jnp.tensordot(x, weights, 3)
        return jnp.stack([-score, 2 * score], 1)

    for ball in BALLS.values():
        radii = robust_radius(logits_fn, images, labels, ball)
        least = margin(weights, images, labels, ball.dual())
        assert float(jnp.min(radii)) == pytest.approx(float(least), rel=1e-4)
        wrong = robust_radius(logits_fn, images, 1 - labels, ball)
        np.testing.assert_allclose(wrong, -radii, rtol=1e-4)


def suite(ball, radius):
    return {
        "fgsm": attacks.fgsm(ball, radius),
        "pgd": attacks.pgd(ball, radius, steps=20),
        "pgd, margin": attacks.pgd(ball, radius, steps=20, loss=attacks.losses.margin),
        "pgd, no start": attacks.pgd(ball, radius, steps=20, start=attacks.no_start),
    }


@pytest.mark.parametrize(
    ("classes", "name"), [(2, name) for name in BALLS] + [(3, name) for name in ("linf", "l2", "l1", "fourier_linf")]
)
def test_attacks_succeed_beyond_the_radius_and_not_inside(name, classes):
    """The closed form, against every attack. Between two classes each attack succeeds as soon as any can; among three
    the steps may follow one boundary and miss a nearer one: they succeed beyond it where they are aimed, below."""
    ball = BALLS[name]

    def logits_fn(images):
        return classifier(images)[:, :classes]

    images, _ = near_the_middle(64, 0.005)
    labels = jnp.argmax(logits_fn(images), 1)
    radii = np.asarray(robust_radius(logits_fn, images, labels, ball))
    assert radii.min() >= 0
    radius = float(np.median(radii))
    inside, beyond = radii > radius * 1.001, radii < radius * 0.98
    assert min(inside.sum(), beyond.sum()) > 20
    for how, attack in suite(ball, radius).items():
        found = attack(jax.random.key(4), logits_fn, images, labels)
        assert np.abs(np.asarray(found) - 0.5).max() < 0.5  # The box is far: the closed form is exact.
        broken = np.asarray(jnp.argmax(logits_fn(found), 1) != labels)
        assert not np.any(broken[inside]), how
        assert classes > 2 or np.all(broken[beyond]), how
    # An attack of a larger ball breaks what this one must not.
    found = suite(ball, 1.5 * radius)["pgd"](jax.random.key(4), logits_fn, images, labels)
    assert np.any(np.asarray(jnp.argmax(logits_fn(found), 1) != labels)[inside])


def aimed(target):
    """The loss of an attack that wants one class."""
    return lambda logits, labels: logits[:, target] - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


@every
def test_attacks_that_aim_at_a_class_succeed_beyond_its_boundary_alone(name):
    ball = BALLS[name]
    images, labels = near_the_middle(64, 0.005)
    radii = np.asarray(robust_radius(classifier, images, labels, ball))
    radius = float(np.median(radii))

    @jax.jit
    def distances(own, target):
        return robust_radius(lambda x: classifier(x)[:, jnp.array([own, target])], images, 0 * labels, ball)

    def attacked(make, options, target):
        attack = make(ball, radius, loss=aimed(target), **options)
        return jnp.argmax(classifier(attack(jax.random.key(4), classifier, images, labels)), 1) != labels

    suite = {
        how: jax.jit(functools.partial(attacked, *make))
        for how, make in {"fgsm": (attacks.fgsm, {}), "pgd": (attacks.pgd, {"steps": 20})}.items()
    }
    nearest, broken = np.full(len(images), np.inf), np.zeros(len(images), bool)
    for target in range(CLASSES):
        pairs = [np.asarray(distances(own, target)) for own in range(CLASSES)]
        boundary = np.where(labels == target, np.inf, np.choose(labels, pairs))
        nearest = np.minimum(nearest, boundary)
        for how, attack in suite.items():
            won = np.asarray(attack(target))
            assert not np.any(won[radii > radius * 1.001]), how
            assert np.all(won[boundary < radius * 0.98]), how
            broken |= won
    np.testing.assert_allclose(nearest, radii, rtol=1e-4)
    assert np.all(broken[radii < radius * 0.98])


def test_on_the_boundary_and_between_equal_classes():
    def logits_fn(x):
        return jnp.stack([x[:, 0], x[:, 0], x[:, 0] - x[:, 1]], 1)

    inputs = jnp.array([[0.5, 0.25]])
    assert robust_radius(logits_fn, inputs, jnp.array([0]), geometry.l2()).tolist() == [0.0]
    assert robust_radius(logits_fn, inputs, jnp.array([2]), geometry.l2()).tolist() == [-0.25]
    lifted = robust_radius(lambda x: logits_fn(x) + jnp.array([1.0, 0.0, 0.0]), inputs, jnp.array([0]), geometry.l2())
    assert lifted.tolist() == [1.25]


def test_jit_changes_nothing():
    images, labels = near_the_middle(8, 0.01)
    plain = robust_radius(classifier, images, labels, geometry.l2())
    jitted = jax.jit(lambda x, y: robust_radius(classifier, x, y, geometry.l2()))(images, labels)
    np.testing.assert_allclose(plain, jitted, rtol=1e-5)
    assert not np.allclose(plain, robust_radius(classifier, images, labels, geometry.linf()))
