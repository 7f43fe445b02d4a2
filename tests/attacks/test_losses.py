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
