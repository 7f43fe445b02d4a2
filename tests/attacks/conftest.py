"""These methods run under strict dtype promotion: no number changes its type unasked."""

import jax
import jax.numpy as jnp
import pytest

SHAPE = (4, 4, 2)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def images():
    """Six images `[6, 4, 4, 2]` of 8 bits a pixel, whole areas of them black or white."""
    found = jax.random.randint(jax.random.key(7), (6, *SHAPE), 0, 256).astype(jnp.float32) / 255
    return found.at[:, 0].set(0.0).at[:, 1].set(1.0)


@pytest.fixture(scope="session")
def labels():
    return jnp.array([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="session")
def curved():
    """Logits of three classes that bend: no attack knows the best direction at the start."""
    one = jax.random.normal(jax.random.key(8), (32, 16)) / 3
    two = jax.random.normal(jax.random.key(9), (16, 3))

    def logits_fn(images):
        hidden = jnp.sin(3 * (images - 0.5).reshape(len(images), -1) @ one.astype(images.dtype))
        return hidden @ two.astype(images.dtype)

    return logits_fn
