"""A denoiser before a classifier: what is certified is their composition, and a black box is asked batch by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxrobust import attacks, certification, data, zeroth_order
from jaxrobust.certification.smoothing import ABSTAIN

KEY, WEIGHTS = jax.random.key(0), jnp.array([3.0, -4.0])


def score(image):
    """Two classes of ONE image; by itself, the radius is the score over five."""
    return jnp.stack([-image @ WEIGHTS, image @ WEIGHTS])


def scaled(factors, images):
    """A denoiser that scales each number."""
    return factors * images


FIRST = Partial(scaled, jnp.array([1.0, 0.0]))
"""Keeps the first number alone: the score is then 3 x, and the radius x."""


def test_a_composition_by_hand_has_the_radius_of_the_composition():
    image = jnp.array([0.4, 0.2])
    logits_fn = certification.denoised(FIRST, score)
    np.testing.assert_allclose(logits_fn(image[None]), [[-1.2, 1.2]], rtol=1e-6)
    found = certification.certify(KEY, logits_fn, image, samples=5_000)
    alone = certification.certify(KEY, jax.vmap(score), image, samples=20_000)
    assert (found.label, alone.label) == (1, 1)
    assert 0.36 < found.radius <= 0.4
    assert 0.07 < alone.radius <= 0.08
    # Denoising the image and not its noisy copies is another classifier.
    wrong = certification.certify(KEY, jax.vmap(score), FIRST(image), samples=5_000)
    assert wrong.radius < 0.3


def test_it_counts_what_the_two_give_together():
    def together(images):
        return jax.vmap(score)(scaled(FIRST.args[0], images))

    image = jnp.array([0.1, -0.3])
    found = certification.certify(KEY, certification.denoised(FIRST, score), image, samples=500)
    np.testing.assert_array_equal(found.counts, certification.certify(KEY, together, image, samples=500).counts)
    answer = certification.predict(KEY, certification.denoised(FIRST, score), image, samples=500)
    np.testing.assert_array_equal(answer.counts, certification.predict(KEY, together, image, samples=500).counts)


def test_the_denoisers_weights_are_arguments():
    image, labels = jnp.array([0.5, 0.0]), []
    for sign in (1.0, -1.0):
        logits_fn = certification.denoised(Partial(scaled, sign * jnp.ones(2)), score)
        labels.append(certification.certify(KEY, logits_fn, image, samples=200).label)
    assert labels == [1, 0]


def test_a_black_box_answers_for_a_batch_in_one_call():
    weights = np.asarray(WEIGHTS)

    def answer(images):
        return np.stack([-images @ weights, images @ weights], 1)

    box = zeroth_order.black_box(answer, (2,), batched=True)
    logits_fn, image = certification.denoised(FIRST, box), jnp.array([0.4, 0.2])
    options = {"samples": 600, "selection_samples": 100, "batch_size": 200}
    found = certification.certify(KEY, logits_fn, image, **options)
    assert (box.queries, box.calls) == (700, 4)
    expected = certification.certify(KEY, certification.denoised(FIRST, score), image, **options)
    np.testing.assert_array_equal(found.counts, expected.counts)


def test_a_query_without_an_answer_counts_for_no_class():
    def broken(image):
        if image[0] < 0.4:
            raise RuntimeError("no answer")
        return np.array([0.0, 1.0])

    box = zeroth_order.black_box(broken, (2,))
    image = jnp.array([0.4, 0.2])
    found = certification.certify(KEY, certification.denoised(FIRST, box), image, samples=200, selection_samples=20)
    assert found.label == ABSTAIN
    assert found.counts[0] == 0 < 60 < found.counts[1] < 140
    assert len(box.failures) >= 200 - found.counts[1]


def test_an_evaluation_behind_the_denoiser_that_is_trained():
    images = np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.9], [0.9, 0.1]], np.float32)
    source = data.arrays(images, np.array([1, 1, 1, 0]), shuffle=False)
    evaluate = certification.behind_denoiser(score, certification.certified(0.25, (0.0, 0.3, 0.6), samples=4000))
    # Radii 0.9, 0.1, 0.4, and one of another class.
    assert evaluate(KEY, FIRST, source).curve == {0.0: 0.75, 0.3: 0.5, 0.6: 0.25}
    clean = certification.behind_denoiser(score, attacks.accuracy())(KEY, FIRST, source)
    assert clean.metrics["clean"] == pytest.approx(0.75)
    bare = certification.behind_denoiser(score, attacks.accuracy())(KEY, lambda images: images, source)
    assert bare.metrics["clean"] == pytest.approx(0.25)
