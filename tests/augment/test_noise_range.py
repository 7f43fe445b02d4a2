"""Additive noise whose range is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust.augment import noise_range
from jaxrobust.augment.noise_range import bounds, distance_penalty
from jaxrobust.typing import Batch


def gray(count, side=16):
    index = jnp.arange(count)
    return Batch(jnp.full((count, side, side, 1), 0.5), index, index, jnp.ones(count))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("raw", [-30.0, -2.0, 0.0, 2.0, 30.0])
def test_bounds_stay_in_order(raw):
    for other in (-30.0, 0.0, 30.0):
        low, high = bounds({"low": jnp.float32(raw), "high": jnp.float32(other)})
        assert 0 <= low <= 5e-5 < 1e-4 <= high <= 1


def test_magnitudes_are_uniform_between_the_bounds():
    augment = noise_range(initial_high=0.1)
    after, _ = jax.jit(augment.apply)(augment.init(jax.random.key(0)), keys(2000), gray(2000), 0)
    change = np.asarray(after.inputs - 0.5).reshape(2000, -1).astype(np.float64)
    # E[m^2] = high^2 / 3 for m ~ U(0, high); a constant m would give high^2.
    squared = (change**2).mean(1)
    standard_error = squared.std() / np.sqrt(2000)
    assert abs(squared.mean() - 0.01 / 3) < 4 * standard_error + 5e-5 * 0.1
    assert abs(squared.mean() - 0.01) > 4 * standard_error
    assert abs(change.mean()) < 4 * change.std() / np.sqrt(change.size)
    levels = np.sqrt(squared)
    assert np.quantile(levels, [0.25, 0.5, 0.75]) == pytest.approx([0.025, 0.05, 0.075], rel=0.12)


def test_images_stay_in_range_and_examples_are_independent():
    augment = noise_range(target_psnr=5.0, initial_high=0.9)
    params, batch = augment.init(jax.random.key(0)), gray(6)
    apply = jax.jit(augment.apply)
    whole, _ = apply(params, keys(6), batch, 0)
    assert 0 <= whole.inputs.min() < whole.inputs.max() <= 1
    assert {float(whole.inputs.min()), float(whole.inputs.max())} == {0.0, 1.0}
    part, _ = apply(params, keys(6)[2:4], jax.tree.map(lambda leaf: leaf[2:4], batch), 0)
    np.testing.assert_array_equal(part.inputs, whole.inputs[2:4])
    again, _ = apply(params, keys(6, seed=1), batch, 0)
    assert not np.array_equal(again.inputs, whole.inputs)


@pytest.mark.parametrize(("relation", "sign"), [(0.8, -1), (1.25, 1)])
def test_penalty_pulls_the_bound_to_where_the_formula_puts_it(relation, sign):
    # With m = u high the slope of E|m^2 - s^2| in high vanishes where u^3 = 1/2 at m = s, s the target's deviation.
    deviation = 10 ** (-30 / 20)
    start = relation * deviation * 2 ** (1 / 3)
    augment = noise_range(target_psnr=30.0, initial_high=start)
    batch, params = gray(2000), augment.init(jax.random.key(0))
    slope = jax.jit(jax.grad(lambda p: augment.apply(p, keys(2000), batch, 0)[1]))(params)
    assert np.sign(slope["high"]) == sign


def test_training_meets_the_target():
    augment, batch = noise_range(target_psnr=20.0, initial_high=0.5), gray(64)
    params, optimizer = augment.init(jax.random.key(0)), optax.adam(0.05)

    def step(carry, key):
        params, state = carry
        slope = jax.grad(lambda p: augment.apply(p, jax.random.split(key, 64), batch, 0)[1])(params)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):
        (trained, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys(300))
    high = float(bounds(trained)[1])
    assert high == pytest.approx(0.1 * 2 ** (1 / 3), rel=0.1)
    assert bounds(params)[1] == pytest.approx(0.5)


def test_the_tasks_loss_reaches_both_bounds():
    augment, batch = noise_range(penalty_weight=0.0), gray(16)

    @jax.jit
    def task(params):
        after, penalty = augment.apply(params, keys(16), batch, 0)
        return jnp.mean((after.inputs - batch.inputs) ** 2) + penalty

    params = augment.init(jax.random.key(0))
    slope = jax.grad(task)(params)
    assert slope["high"] > 0
    assert slope["low"] != 0
    # Of the reparametrization: d m / d low = 1 - u, d m / d high = u, times the slopes of the sigmoids.
    step = 1e-2
    moved = {**params, "high": params["high"] + step}, {**params, "high": params["high"] - step}
    assert slope["high"] == pytest.approx(float(task(moved[0]) - task(moved[1])) / (2 * step), rel=2e-3)


def test_penalty_by_hand_and_in_half_precision():
    images = jnp.zeros((2, 4, 4, 1))
    changed = images.at[0].set(0.1)
    # Errors 255^2 * (0.01, 0); the target of 20 dB is 255^2 * 0.01.
    assert distance_penalty(changed, images, 20.0) == pytest.approx((650.25 - 0.5) / 2 / 65025, rel=1e-5)
    assert distance_penalty(changed, images, 10.0) > distance_penalty(changed, images, 20.0)
    white = jnp.ones((2, 64, 64, 3), jnp.float16)
    penalty = distance_penalty(white, jnp.zeros_like(white), 20.0)
    assert penalty.dtype == jnp.float32
    assert penalty == pytest.approx(0.99, rel=1e-4)


def test_dtype_of_images_is_kept():
    augment = noise_range()
    batch = gray(2)._replace(inputs=jnp.full((2, 4, 4, 1), 0.5, jnp.bfloat16))
    after, _ = augment.apply(augment.init(jax.random.key(0)), keys(2), batch, 0)
    assert after.inputs.dtype == jnp.bfloat16


def test_recorded_numbers(shared):
    golden = np.load(shared / "golden" / "range_augment" / "range_augment.npz")
    for (low, high), raw_low, raw_high in zip(
        np.stack([golden["clip/noise_low"], golden["clip/noise_high"]], -1).reshape(-1, 2),
        golden["clip/raw"].reshape(-1),
        golden["clip/raw"].reshape(-1),
        strict=True,
    ):
        found = bounds({"low": jnp.float32(raw_low), "high": jnp.float32(raw_high)})
        np.testing.assert_allclose(found, [low, high], rtol=1e-5)
    x, y = (jnp.asarray(golden[f"loss/{name}"], jnp.float32) for name in "xy")
    for target in (5, 20, 40):
        expected = float(np.ravel(golden[f"loss/fixed_{target}"])[0])
        assert 100 * distance_penalty(x, y, float(target)) == pytest.approx(expected, rel=1e-5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"target_psnr must be positive and finite, in dB, got 0\.0"):
        noise_range(target_psnr=0.0)
    with pytest.raises(ValueError, match=r"penalty_weight must not be negative, got -1\.0"):
        noise_range(penalty_weight=-1.0)
    with pytest.raises(ValueError, match=r"initial_high must lie in \(0\.0001, 1\.0\), got 2\.0"):
        noise_range(initial_high=2.0)
