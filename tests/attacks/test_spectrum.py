"""The share of energy in few frequencies: by hand, against NumPy, and for white noise its expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks


def numpy_share(delta, share):
    energy = (np.abs(np.fft.fft2(delta, axes=(1, 2))) ** 2).sum(-1).reshape(len(delta), -1)
    count = max(1, round(share * energy.shape[1]))
    return np.sort(energy, axis=1)[:, -count:].sum(1) / energy.sum(1)


def test_by_hand():
    rows, columns = np.mgrid[:8, :8]
    wave = np.cos(2 * np.pi * (3 * rows + columns) / 8)[:, :, None]
    point = np.zeros((8, 8, 1))
    point[2, 5] = -3.0
    delta = jnp.asarray(np.stack([wave, wave + 0.5, point, 0 * point]), jnp.float32)
    # A wave has two frequencies of 64; with a constant three; a point has all of them alike; zero has none.
    for share, expected in (
        (2 / 64, [1, 0.5 / 0.75, 2 / 64, 0]),
        (1 / 64, [0.5, 1 / 3, 1 / 64, 0]),
        (1e-3, [0.5, 1 / 3, 1 / 64, 0]),
        (0.1, [1, 1, 6 / 64, 0]),
        (1.0, [1, 1, 1, 0]),
    ):
        np.testing.assert_allclose(attacks.energy_share(delta, share), expected, atol=1e-5)


def test_against_numpy(x64):
    """Sides of any kind, a frequency's energy summed over the channels; neither scale nor place counts."""
    delta = np.random.default_rng(0).standard_normal((4, 5, 6, 3))
    found = jax.jit(attacks.energy_share)(jnp.asarray(delta))
    np.testing.assert_allclose(found, numpy_share(delta, 0.1), rtol=1e-12)
    np.testing.assert_allclose(attacks.energy_share(jnp.asarray(-7 * np.roll(delta, 2, 1))), found, rtol=1e-12)
    assert not np.allclose(attacks.energy_share(jnp.asarray(delta[..., :1])), found, rtol=1e-2)
    assert not np.allclose(attacks.energy_share(jnp.asarray(delta), 0.2), found, rtol=1e-2)
    assert attacks.energy_share(jnp.asarray(delta, jnp.float32)).dtype == jnp.float32


def test_white_noise_and_a_blurred_one():
    """Energies are exponential: the largest tenth holds 0.1 (1 + log 10) of it in the limit."""
    noise = jax.random.normal(jax.random.key(0), (100, 64, 64, 1))
    shares = np.asarray(attacks.energy_share(noise), np.float64)
    assert abs(shares.mean() - 0.1 * (1 + np.log(10))) < 1e-3 + 4 * shares.std() / 10
    blurred = sum(jnp.roll(noise, (i, j), (1, 2)) for i in range(3) for j in range(3))
    assert np.all(attacks.energy_share(blurred) > shares + 0.1)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"delta must be \[batch, height, width, channel\], got shape \(2, 64\)"):
        attacks.energy_share(jnp.ones((2, 64)))
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"share must lie in \(0, 1\], got {share}"):
            attacks.energy_share(jnp.ones((1, 4, 4, 1)), share)
