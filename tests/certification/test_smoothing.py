"""Randomized smoothing against classifiers whose radius is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial
from scipy import stats

from jaxrobust import certification, data
from jaxrobust.certification.smoothing import ABSTAIN

KEY, WEIGHTS = jax.random.key(0), jnp.array([3.0, -4.0])


def linear(images):
    """Two classes; the radius of an image is its score over five."""
    scores = images @ WEIGHTS
    return jnp.stack([-scores, scores], axis=1)


def image(radius):
    return WEIGHTS / 5 * radius


@pytest.mark.parametrize("own", [0, 1, 37, 99, 100])
def test_bound_is_the_one_sided_interval_and_not_the_two_sided(own):
    found = certification.certify_counts(0, np.array([own, 100 - own]), sigma=1.0, failure_probability=0.05)
    if own:
        # At the bound, so many hits or more have just the allowed probability.
        assert stats.binom.sf(own - 1, 100, found.lower_bound) == pytest.approx(0.05, rel=1e-6)
        two_sided = stats.binomtest(own, 100).proportion_ci(0.95).low
        assert found.lower_bound > two_sided + 1e-4
    else:
        assert found.lower_bound == 0
    assert (found.label == ABSTAIN) == (found.lower_bound <= 0.5) == (found.radius == 0)


@pytest.mark.parametrize(("samples", "radius"), [(100, 1.500), (1000, 2.463), (10_000, 3.199), (100_000, 3.811)])
def test_largest_radius_of_so_many_samples(samples, radius):
    assert certification.certify_counts(1, np.array([0, samples, 0]), sigma=1.0).radius == pytest.approx(
        radius, abs=6e-4
    )


def test_coverage_and_tightness_over_a_thousand_runs():
    """The true probability is known, and so are the counts' laws: certificates may be wrong in alpha of the runs."""
    runs, samples, alpha, sigma, true = 1000, 200, 0.05, 0.5, 0.35
    labels = {"right": 0, "wrong": 0}
    radii = []
    for key in jax.random.split(KEY, runs):
        found = certification.certify(
            key, linear, image(true), sigma=sigma, samples=samples, selection_samples=20, failure_probability=alpha
        )
        labels["wrong" if found.radius > true or found.label == 0 else "right"] += 1
        radii.append(found.radius)
    # Four standard errors above alpha would be chance once in thirty thousand.
    assert labels["wrong"] / runs <= alpha + 4 * np.sqrt(alpha * (1 - alpha) / runs)
    # The control: a bound at the mean would be wrong in half of them; a two-sided one too seldom.
    assert labels["wrong"] / runs > 0.02
    more = certification.certify(KEY, linear, image(true), sigma=sigma, samples=50_000, failure_probability=alpha)
    assert np.mean(radii) < more.radius <= true
    assert more.radius > 0.97 * true


def test_samples_that_choose_the_class_are_not_those_behind_the_bound():
    """At the boundary both classes are equally frequent: the better of one sample, bounded by itself, would pass."""
    passed = reused = 0
    for key in jax.random.split(jax.random.key(5), 300):
        found = certification.certify(
            key, linear, jnp.zeros(2), sigma=1.0, samples=100, selection_samples=100, failure_probability=0.1
        )
        passed += found.label != ABSTAIN
        own = int(np.argmax(found.counts))
        reused += certification.certify_counts(own, found.counts, sigma=1.0, failure_probability=0.1).label != ABSTAIN
    assert passed / 300 < 0.1 + 4 * np.sqrt(0.09 / 300)
    assert reused > 1.5 * passed


@pytest.mark.parametrize("batch_size", [16, 100, 1000])
def test_batches_and_devices_change_nothing(batch_size):
    found = certification.certify(KEY, linear, image(0.1), sigma=0.5, samples=250, batch_size=batch_size)
    again = certification.certify(KEY, linear, image(0.1), sigma=0.5, samples=250, batch_size=7)
    np.testing.assert_array_equal(found.counts, again.counts)
    assert found.counts.sum() == 250
    other = certification.certify(jax.random.key(1), linear, image(0.1), sigma=0.5, samples=250)
    assert (other.counts != found.counts).any()


def test_a_prediction_abstains_at_the_boundary():
    far = certification.predict(KEY, linear, image(-0.5), sigma=0.25, samples=200)
    near = certification.predict(KEY, linear, image(0.0), sigma=0.25, samples=200)
    assert (far.label, near.label) == (0, ABSTAIN)
    assert far.p_value < 0.001 < near.p_value
    answers = [
        certification.predict(key, linear, image(0.01), sigma=0.25, samples=100, failure_probability=0.05).label
        for key in jax.random.split(KEY, 300)
    ]
    assert answers.count(0) / 300 < 0.05
    # Of two classes that are equally probable any answer is wrong; a one-sided test would give twice as many.
    alpha, runs, given = 0.05, 1500, []
    for key in jax.random.split(jax.random.key(1), runs):
        found = certification.predict(key, linear, image(0.0), sigma=0.25, samples=100, failure_probability=alpha)
        given.append((found.label != ABSTAIN, found.p_value / 2 <= alpha))
    assert np.mean(given, axis=0)[0] < alpha + 4 * np.sqrt(alpha * (1 - alpha) / runs) < np.mean(given, axis=0)[1]
    with pytest.raises(ValueError, match="logits of two classes or more, got 1"):
        certification.predict(KEY, lambda images: images[:, :1], image(0.0), samples=10)


def test_certified_accuracy_by_radius():
    radii = np.array([0.1, 0.3, 0.5, 0.6])

    def centered(images):
        return linear(images - 0.5)

    points = np.stack([0.5 + np.asarray(image(r)) for r in radii]).astype(np.float32)
    source = data.arrays(points, np.array([1, 1, 1, 0]), shuffle=False)
    found = certification.certified(0.4, (0.0, 0.2, 0.4, 0.55), samples=4000)(KEY, centered, source)
    # The last one is mislabelled, however large its radius.
    assert found.curve == {0.0: 0.75, 0.2: 0.5, 0.4: 0.25, 0.55: 0.0}
    assert found.metrics == {"certified": 0.75, "abstained": 0.0}
    # Equal images have noise of their own: their certified radii differ.
    twins = data.arrays(np.stack([points[2]] * 3), np.array([1, 1, 1]), shuffle=False)
    at = certification.certified(0.4, tuple(np.linspace(0.2, 0.5, 300)), samples=200)(KEY, centered, twins).curve
    assert len(set(at.values())) > 2
    few = certification.certified(0.4, (0.0,), samples=10, examples=2)(KEY, centered, source)
    assert few.metrics == {"certified": 0.0, "abstained": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive, got 0.0"),
        ({"failure_probability": 1.0}, r"failure_probability must lie in \(0, 1\), got 1.0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"selection_samples": 0}, "selection_samples must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        certification.certify(KEY, linear, image(0.1), **options)


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (-1, {}, "label must be one of the 2 classes, got -1"),
        (2, {}, "label must be one of the 2 classes, got 2"),
        (0, {"samples": 5}, "samples must be at least the 10 that were counted, got 5"),
    ],
)
def test_counts_that_do_not_fit_are_refused(label, options, message):
    with pytest.raises(ValueError, match=message):
        certification.certify_counts(label, np.array([9, 1]), sigma=1.0, **options)
    with pytest.raises(ValueError, match="sigma must be positive, got -1"):
        certification.certified(-1.0)


def test_answers_that_are_no_numbers_count_for_no_class():
    def broken(images):
        return jnp.full((len(images), 2), jnp.nan)

    def half(images):
        return jnp.where(images[:, :1] > image(0.5)[0], jnp.nan, linear(images))

    found = certification.certify(KEY, broken, image(0.5), samples=100)
    assert (found.label, found.counts.sum()) == (ABSTAIN, 0)
    # Every answer that is one names class 1, and yet half of the samples have none.
    found = certification.certify(KEY, half, image(0.5), samples=400)
    assert 5 * found.counts[0] < found.counts[1] < 300
    assert certification.certify_counts(1, found.counts, sigma=0.25).label == 1
    assert found.label == ABSTAIN


def test_weights_are_arguments_and_may_lie_anywhere():
    def logits(weights, images):
        scores = images @ weights
        return jnp.stack([-scores, scores], axis=1)

    labels = []
    for sign in (1.0, -1.0):
        held = jax.device_put(sign * WEIGHTS, jax.devices()[3])
        labels.append(certification.certify(KEY, Partial(logits, held), image(0.5), samples=200).label)
    assert labels == [1, 0]
    spread = jax.device_put(WEIGHTS, NamedSharding(Mesh(np.array(jax.devices())[::-1][:4], ("x",)), P()))
    far = certification.certify(KEY, Partial(logits, spread), np.asarray(image(0.5)), samples=200)
    near = certification.certify(KEY, linear, image(0.5), samples=200)
    np.testing.assert_array_equal(far.counts, near.counts)


def test_a_function_that_gives_no_logits_is_refused():
    with pytest.raises(ValueError, match=r"logits_fn must give \[batch, classes\], got \(10,\) for 10 images"):
        certification.certify(KEY, lambda images: images @ WEIGHTS, image(0.1), samples=10, selection_samples=10)
