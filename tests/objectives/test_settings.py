"""Settings: the published ones attack as their papers say, bad ones are refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry, objectives
from jaxrobust.objectives import presets

LINF = geometry.linf()
UNIFORM = attacks.uniform_start
SMOOTH = {"beta": 5.0, "steps": 10, "step_size": 2 / 255, "start": UNIFORM, "label_smoothing": 0.1}
PUBLISHED = {
    "madry2018_cifar10": objectives.adversarial(attacks.pgd(LINF, 8 / 255, steps=10, step_size=2 / 255)),
    "zhang2019_cifar10": objectives.trades(
        LINF, 0.031, beta=6.0, steps=10, step_size=0.007, start=attacks.gaussian_start(0.001)
    ),
    "wang2020_cifar10": objectives.mart(
        LINF, 0.031, beta=5.0, steps=10, step_size=0.007, start=attacks.gaussian_start(0.001)
    ),
    "wong2020_cifar10": objectives.adversarial(attacks.fgsm(LINF, 8 / 255, step_size=10 / 255, start=UNIFORM)),
    "wang2023_cifar10": objectives.trades(LINF, 8 / 255, **SMOOTH),
    "bartoldson2024_cifar10": objectives.trades(LINF, 8 / 255, **SMOOTH, attack_in_training_mode=True),
}
OTHER = objectives.trades(LINF, 0.03, beta=6.5, steps=2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name, normalized, keys, batch):
    model, params, state = normalized

    @jax.jit
    def run(keys):
        found = []
        for objective in (getattr(presets, name)(), PUBLISHED[name], OTHER):
            delta = objective.prepare(keys, model, params, state, batch)
            fixed = 0.1 * (batch.inputs - batch.inputs[::-1])
            found.append((delta, objective.losses(fixed, keys, model, params, state, batch)[0]))
        return found

    preset, expected, other = run(keys)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6), preset, expected)
    assert not np.allclose(preset[0], other[0], atol=1e-6)
    assert not np.allclose(preset[1], other[1], atol=1e-6)


def test_every_preset_is_tested():
    own = {name for name, value in vars(presets).items() if getattr(value, "__module__", "") == presets.__name__}
    assert own == set(PUBLISHED)


def test_the_attack_of_trades_climbs_the_divergence(plain, keys, batch):
    model, params, state = plain
    objective = objectives.trades(LINF, 0.2, steps=5)
    delta = jax.jit(lambda: objective.prepare(keys, model, params, state, batch))()

    def divergence(delta):
        return objective.losses(delta, keys, model, params, state, batch)[1][1]["kl"]

    random = 0.2 * jnp.asarray(np.sign(np.random.default_rng(0).standard_normal(delta.shape)), jnp.float32)
    assert np.all(divergence(delta) > divergence(0.2 * delta))
    assert divergence(delta).mean() > divergence(random).mean()
    assert divergence(random).mean() > 0


@pytest.mark.parametrize("method", [objectives.trades, objectives.mart])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -1.0}, r"radius must be positive, got -1\.0"),
        ({"radius": 0.0}, r"radius must be positive, got 0\.0"),
        ({"beta": -0.5}, r"beta must not be negative, got -0\.5"),
        ({"beta": math.nan}, "beta must not be negative, got nan"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": 0.0}, r"step_size must be positive, got 0\.0"),
    ],
)
def test_bad_settings_are_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(LINF, **{"radius": 0.1, **options})


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_bad_smoothing_is_refused(share):
    for build in (
        lambda: objectives.cross_entropy(share),
        lambda: objectives.adversarial(attacks.fgsm(LINF, 0.1), label_smoothing=share),
        lambda: objectives.trades(LINF, 0.1, label_smoothing=share),
    ):
        with pytest.raises(ValueError, match=rf"label_smoothing must lie in \[0, 1\), got {share}"):
            build()
