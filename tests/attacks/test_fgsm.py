"""The fast gradient sign method by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry

KEY = jax.random.key(0)


def run(attack, logits_fn, images, labels):
    return jax.jit(lambda images: attack(KEY, logits_fn, images, labels))(images)


def test_by_hand(images, labels, curved):
    slope = jax.jit(jax.grad(lambda x: attacks.losses.cross_entropy(curved(x), labels).sum()))(images)
    expected = np.clip(images + 0.1 * np.sign(slope), 0, 1)
    np.testing.assert_allclose(run(attacks.fgsm(geometry.linf(), 0.1), curved, images, labels), expected, atol=1e-6)
    descent = attacks.fgsm(geometry.linf(), 0.1, loss=lambda z, y: -attacks.losses.cross_entropy(z, y))
    assert not np.allclose(run(descent, curved, images, labels), expected, atol=1e-6)


def test_the_fast_recipe_starts_at_random_and_stays_in_the_ball():
    """A linear model: each pixel is its uniform start and a step of 1.25 radii, cut to the ball."""
    images = jnp.full((6, 5, 5, 2), 0.5)

    def logits_fn(x):
        score = x.sum((1, 2, 3))
        return jnp.stack([score, -score, jnp.full_like(score, -1e3)], axis=1)

    attack = attacks.fgsm(geometry.linf(), 0.1, step_size=0.125, start=attacks.uniform_start)
    found = run(attack, logits_fn, images, jnp.zeros(6, jnp.int32)) - images
    # A start of u in [-0.1, 0.1] ends at max(u - 0.125, -0.1): five eighths of them reach the bound.
    reached = np.mean(np.isclose(found, -0.1, atol=1e-6))
    assert abs(reached - 5 / 8) < 4 * np.sqrt(5 / 8 * 3 / 8 / found.size)
    assert np.all(found >= -0.1 - 1e-6)
    assert np.all(found < -0.025 + 1e-6)
    # From the clean image every pixel reaches it.
    clean = attacks.fgsm(geometry.linf(), 0.1, step_size=0.125)
    assert np.allclose(run(clean, logits_fn, images, jnp.zeros(6, jnp.int32)) - images, -0.1)


@pytest.mark.parametrize("step_size", [0.0, -0.5])
def test_bad_steps_are_refused(step_size):
    with pytest.raises(ValueError, match=f"step_size must be positive, got {step_size}"):
        attacks.fgsm(geometry.linf(), 0.1, step_size=step_size)
