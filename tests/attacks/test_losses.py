"""Losses that attacks maximize, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.attacks import losses

LOGITS = jnp.asarray(np.random.default_rng(0).standard_normal((5, 4)) * 3, jnp.float32)
LABELS = jnp.array([0, 3, 1, 2, 2]).at[:2].set(jnp.argmax(LOGITS[:2], -1))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_cross_entropy_by_its_formula():
    expected = -np.log(softmax(np.asarray(LOGITS, np.float64)))[range(5), LABELS]
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), expected, rtol=1e-5)
    assert not np.allclose(losses.cross_entropy(LOGITS, jnp.roll(LABELS, 1)), expected, rtol=1e-2)


def test_the_margin_is_positive_where_the_prediction_is_wrong():
    z = np.asarray(LOGITS)
    expected = [max(np.delete(row, y)) - row[y] for row, y in zip(z, LABELS, strict=True)]
    found = losses.margin(LOGITS, LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(found > 0, z.argmax(-1) != LABELS)
    assert len(set((found > 0).tolist())) == 2
    # Without leaving out the true class it would never be negative.
    assert not np.allclose(z.max(-1) - z[range(5), LABELS], expected)


def test_kl_divergence_by_its_formula():
    p = softmax(np.random.default_rng(1).standard_normal((5, 4)))
    q = softmax(np.asarray(LOGITS, np.float64))
    found = losses.kl_divergence(LOGITS, jnp.asarray(p, jnp.float32))
    np.testing.assert_allclose(found, (p * np.log(p / q)).sum(-1), rtol=1e-4)
    assert not np.allclose(found, (q * np.log(q / p)).sum(-1), rtol=1e-2)
    np.testing.assert_allclose(losses.kl_divergence(LOGITS, jax.nn.softmax(LOGITS)), 0, atol=1e-6)


def test_kl_divergence_from_a_certain_prediction():
    certain = jnp.eye(4)[LABELS]
    np.testing.assert_allclose(losses.kl_divergence(LOGITS, certain), losses.cross_entropy(LOGITS, LABELS), rtol=1e-5)
    gradient = jax.grad(lambda z: losses.kl_divergence(z, certain).sum())(LOGITS)
    np.testing.assert_allclose(gradient, jax.nn.softmax(LOGITS) - certain, atol=1e-6)


def test_the_ratio_by_its_formula():
    z = np.asarray(LOGITS, np.float64)
    largest = -np.sort(-z, axis=1)
    expected = np.asarray(losses.margin(LOGITS, LABELS)) / (largest[:, 0] - largest[:, 2])
    found = losses.dlr(LOGITS, LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(found, expected * (largest[:, 0] - largest[:, 2]) / (largest[:, 0] - largest[:, 1]))
    assert found.min() >= -1
    np.testing.assert_array_equal(found > 0, z.argmax(-1) != LABELS)


def test_the_targeted_ratio_by_its_formula():
    z, rows = np.asarray(LOGITS, np.float64), np.arange(5)
    targets = (LABELS + 1) % 4
    largest = -np.sort(-z, axis=1)
    expected = (z[rows, targets] - z[rows, LABELS]) / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2)
    np.testing.assert_allclose(losses.targeted_dlr(LOGITS, LABELS, targets), expected, rtol=1e-5)
    assert not np.allclose(losses.targeted_dlr(LOGITS, targets, LABELS), expected, rtol=1e-5)


def test_ratios_change_neither_with_a_shift_nor_with_a_scale():
    targets = (LABELS + 1) % 4
    for ratio in (losses.dlr, lambda z, y: losses.targeted_dlr(z, y, targets)):
        np.testing.assert_allclose(ratio(1000 * LOGITS + 7, LABELS), ratio(LOGITS, LABELS), rtol=1e-3)
        slope = jax.grad(lambda z: ratio(z, LABELS).sum())(LOGITS)  # noqa: B023
        # Of degree 0: the slope is at a right angle to the logits and to shifts, the denominator's share included.
        np.testing.assert_allclose(jnp.sum(slope * LOGITS, 1), 0, atol=1e-5)
        np.testing.assert_allclose(jnp.sum(slope, 1), 0, atol=1e-5)
    slope = jax.grad(lambda z: losses.margin(z, LABELS).sum())(LOGITS)
    assert not np.allclose(jnp.sum(slope * LOGITS, 1), 0, atol=1e-5)


def test_the_ratio_is_one_where_the_label_comes_third():
    assert losses.dlr(jnp.array([[4.0, 1.0, 2.0, 0.0]]), jnp.array([1]))[0] == 1
    assert losses.dlr(jnp.array([[4.0, 1.0, 2.0, 0.0]]), jnp.array([2]))[0] < 1
    assert losses.dlr(jnp.full((1, 4), 3.0), jnp.array([1]))[0] == 0


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_ratios_of_few_classes(classes):
    """What there are too few classes to divide by is left out."""
    logits, labels, targets = LOGITS[:, :classes], jnp.zeros(5, int), jnp.ones(5, int)
    found, toward = losses.dlr(logits, labels), losses.targeted_dlr(logits, labels, targets)
    assert np.all(np.isfinite(found))
    assert np.allclose(found, losses.margin(logits, labels), rtol=1e-3) == (classes < 3)
    assert np.allclose(toward, logits[:, 1] - logits[:, 0], rtol=1e-3) == (classes < 4)


def toward_the_next(logits, labels):
    return losses.targeted_dlr(logits, labels, (labels + 1) % 4)


@pytest.mark.parametrize("loss", [losses.dlr, toward_the_next])
def test_ratios_in_half_precision_are_raised_to_single(loss):
    half = LOGITS.astype(jnp.bfloat16)
    found = loss(half, LABELS)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loss(half.astype(jnp.float32), LABELS), rtol=1e-6)
    with jax.enable_x64(True):
        assert loss(LOGITS.astype(jnp.float64), LABELS).dtype == "f8"


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "kl_divergence"])
def test_half_precision_is_raised_to_single(name):
    loss = getattr(losses, name)
    labels = jax.nn.softmax(LOGITS[::-1]) if name == "kl_divergence" else LABELS
    half = LOGITS.astype(jnp.bfloat16)
    found = loss(half, labels)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loss(half.astype(jnp.float32), labels), rtol=1e-6, atol=1e-7)
    # Their own rounding would be seen.
    assert not np.allclose(found.astype(jnp.bfloat16).astype(jnp.float32), found, rtol=1e-6, atol=1e-7)
    with jax.enable_x64(True):
        assert loss(LOGITS.astype(jnp.float64), labels.astype(jnp.float64 if labels.ndim > 1 else int)).dtype == "f8"
