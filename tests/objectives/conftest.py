"""Small models and a batch; everything runs under strict dtype promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.typing import Batch, Model

SIZE, CLASSES = 5, 3


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def normal(seed, *shape):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), np.float32)


@pytest.fixture(scope="session")
def batch():
    inputs = np.asarray(np.random.default_rng(0).uniform(0.2, 0.8, (SIZE, 2, 2, 1)), np.float32)
    targets = np.array([0, 1, 2, 1, 0], np.int32)
    return Batch(jnp.asarray(inputs), jnp.asarray(targets), jnp.arange(SIZE), jnp.ones(SIZE))


@pytest.fixture(scope="session")
def keys():
    return jax.random.split(jax.random.key(0), SIZE)


@pytest.fixture(scope="session")
def plain():
    """A bent network without state: (model, params, state)."""

    def apply(params, state, inputs, *, train):
        del train
        hidden = jnp.tanh((inputs - 0.5).reshape(len(inputs), -1) @ params["in"])
        return hidden @ params["out"], state

    params = {"in": jnp.asarray(3 * normal(1, 4, 6)), "out": jnp.asarray(normal(2, 6, CLASSES))}
    return Model(lambda key, inputs: (params, {}), apply), params, {}


@pytest.fixture(scope="session")
def normalized():
    """The same with batch norm whose running mean is far from the batches': (model, params, state)."""

    def apply(params, state, inputs, *, train):
        hidden = (inputs - 0.5).reshape(len(inputs), -1) @ params["in"]
        mean = hidden.mean(0) if train else state["mean"]
        state = {"mean": 0.9 * state["mean"] + 0.1 * mean} if train else state
        return jnp.tanh(hidden - mean) @ params["out"], state

    params = {"in": jnp.asarray(3 * normal(1, 4, 6)), "out": jnp.asarray(normal(2, 6, CLASSES))}
    state = {"mean": jnp.asarray(2 * normal(3, 6))}
    return Model(lambda key, inputs: (params, state), apply), params, state
