"""The Fourier attack against all others, brought into its ball."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, data, geometry, models, train
from jaxrobust.geometry.norm import divided

KEY, RADIUS = jax.random.key(0), 0.05
FOURIER = geometry.fourier_linf()
STEPS = {"steps": 50, "loss": attacks.losses.margin}
# Each in a ball of its own, large enough for perturbations that leave the Fourier ball; FAB in one without an end.
OTHERS = {
    "PGD in linf": attacks.pgd(geometry.linf(), 0.1, **STEPS),
    "PGD in l2": attacks.pgd(geometry.l2(), 0.6, **STEPS),
    "PGD in l1": attacks.pgd(geometry.l1(), 4.0, **STEPS),
    "PGD in l3": attacks.pgd(geometry.lp(3), 0.3, **STEPS),
    "PGD in the spectral norm": attacks.pgd(geometry.spectral(), 0.4, **STEPS),
    "PGD in Fourier-l1": attacks.pgd(geometry.fourier_l1(), 2.0, **STEPS),
    "FGSM": attacks.fgsm(geometry.linf(), 0.1),
    "APGD in linf": attacks.apgd(geometry.linf(), 0.1, steps=50),
    "APGD in l2": attacks.apgd(geometry.l2(), 0.6, steps=50),
    "APGD in l1": attacks.apgd(geometry.l1(), 4.0, steps=50),
    "FAB in linf": attacks.fab(geometry.linf(), np.inf, steps=50),
    "FAB in l2": attacks.fab(geometry.l2(), np.inf, steps=50),
    "Square in linf": attacks.square(geometry.linf(), 0.1, queries=500),
}


@pytest.fixture(scope="module")
def digits():
    """A network, and test images that it classifies rightly."""
    splits = data.digits()
    fitted = train.fit(train.Experiment(model=models.mlp(10, (64,)), data=splits.train, steps=300))
    images, labels = attacks.in_order(KEY, splits.test, 100)
    right = np.argmax(fitted.predict(images), 1) == labels
    return fitted.predict, jnp.asarray(images[right]), jnp.asarray(labels[right])


def margins(predict, found, labels):
    return np.asarray(attacks.losses.margin(predict(found), labels))


@pytest.fixture(scope="module")
def ours(digits):
    """Margins under the Fourier attack."""
    predict, images, labels = digits
    found = jax.jit(attacks.pgd(FOURIER, RADIUS, **STEPS))(KEY, predict, images, labels)
    assert jax.vmap(FOURIER.norm)(found - images).max() <= RADIUS * (1 + 1e-6)
    assert found.min() >= 0
    assert found.max() <= 1
    return margins(predict, found, labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_no_other_attack_is_as_strong_in_its_ball(name, digits, ours):
    """Perturbations are shortened or lengthened to the same norm."""
    predict, images, labels = digits
    found = OTHERS[name](KEY, predict, images, labels)
    delta = found - images
    factors = divided(jnp.float32(RADIUS), jax.vmap(FOURIER.norm)(delta))[:, None, None, None]
    brought = jax.vmap(lambda c, x: geometry.within(FOURIER, c, x, RADIUS))(images, images + factors * delta)
    theirs = margins(predict, brought, labels)
    # None of them is weak because it is shorter.
    assert jnp.mean(jax.vmap(FOURIER.norm)(brought - images)) > 0.9 * RADIUS
    assert ours.mean() > theirs.mean()
    assert np.mean(ours > 0) > np.mean(theirs > 0)
