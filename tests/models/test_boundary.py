"""What every adapter does at the ends of a network: normalization, the dtypes of outputs and of state, refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import models

MEAN, STD = models.CIFAR10_MEAN, models.CIFAR10_STD
IMAGES = jax.random.uniform(jax.random.key(0), (4, 2, 2, 3))


def echo(**normalization):
    """A network that returns its inputs."""
    return models.function(lambda key, inputs: {}, lambda params, inputs: inputs, **normalization)


def outputs(model, inputs, *, train=False):
    params, state = model.init(jax.random.key(0), inputs)
    return model.apply(params, state, inputs, train=train)[0]


@pytest.fixture
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), (MEAN, None), (None, STD), (0.5, 0.25), (None, None)])
def test_inputs_are_normalized_channel_by_channel(strict, mean, std):
    expected = (np.asarray(IMAGES) - np.float32(mean or 0)) / np.float32(std or 1)
    np.testing.assert_array_max_ulp(np.asarray(outputs(echo(mean=mean, std=std), IMAGES)), expected, 1)


def test_a_whole_set_of_the_given_mean_and_std_comes_out_standard():
    pixels = jnp.asarray([np.subtract(MEAN, STD), np.add(MEAN, STD)], jnp.float32)
    normal = np.asarray(outputs(echo(mean=MEAN, std=STD), pixels))
    np.testing.assert_allclose(normal, [[-1] * 3, [1] * 3], rtol=1e-6)
    exchanged = np.asarray(outputs(echo(mean=STD, std=MEAN), pixels))
    assert np.abs(exchanged - normal).max() > 0.3


def test_a_network_that_normalizes_equals_one_that_is_given_normal_images():
    inside, bare = models.mlp(mean=MEAN, std=STD), models.mlp()
    params, _ = inside.init(jax.random.key(2), IMAGES)
    normal = (IMAGES - jnp.array(MEAN)) / jnp.array(STD)
    within = inside.apply(params, {}, IMAGES, train=False)[0]
    np.testing.assert_array_equal(within, bare.apply(params, {}, normal, train=False)[0])
    assert np.abs(within - bare.apply(params, {}, IMAGES, train=False)[0]).max() > 0.1


@pytest.mark.parametrize(
    ("given", "expected"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("int32", "int32")]
)
def test_outputs_are_at_least_float32(strict, given, expected):
    assert outputs(echo(), jnp.ones([2, 3], given)).dtype == expected


def test_outputs_of_64_bits_stay_so(strict):
    with jax.enable_x64(True):
        model = echo(mean=MEAN, std=STD)
        normal = outputs(model, jnp.full([1, 3], 0.1, jnp.float64))
        assert normal.dtype == jnp.float64
        np.testing.assert_allclose(normal[0], (0.1 - np.array(MEAN)) / STD, rtol=1e-15)


def test_outputs_may_be_a_pytree():
    model = models.function(lambda key, inputs: {}, lambda params, inputs: {"a": inputs, "b": (inputs > 0,)})
    found = outputs(model, jnp.ones([2], jnp.bfloat16))
    assert (found["a"].dtype, found["b"][0].dtype) == (jnp.float32, jnp.bool_)


class Normed(nn.Module):
    """Batch norm that computes in 64 bits and starts its statistics in 32, as Linen's does."""

    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(not train, dtype=jnp.float64, param_dtype=jnp.float64)(x)


def test_the_state_keeps_its_dtypes_so_that_a_step_is_traced_once():
    def traces(init, apply, inputs):
        count = 0

        @jax.jit
        def step(params, state):
            nonlocal count
            count += 1
            return apply(params, state, inputs)

        params, state = init(jax.random.key(0), inputs)
        for _ in range(3):
            state = step(params, state)
        return count

    def bare_init(key, inputs):
        variables = Normed().init(key, inputs, train=False)
        return variables["params"], {"batch_stats": variables["batch_stats"]}

    def bare_apply(params, state, inputs):
        return Normed().apply({"params": params, **state}, inputs, train=True, mutable=["batch_stats"])[1]

    model = models.linen(Normed())
    with jax.enable_x64(True):
        inputs = jnp.ones([4, 2], jnp.float64)
        assert traces(model.init, lambda *arguments: model.apply(*arguments, train=True)[1], inputs) == 1
        assert traces(bare_init, bare_apply, inputs) == 2
        assert {leaf.dtype for leaf in jax.tree.leaves(model.init(jax.random.key(0), inputs)[1])} == {
            jnp.dtype("float64")
        }


@pytest.mark.parametrize(
    ("normalization", "message"),
    [
        ({"std": (0.2, 0.0, 0.2)}, "std must be positive, got .*: leave"),
        ({"std": -1.0}, "std must be positive, got -1.0"),
        ({"mean": (0.1, float("nan"), 0.1)}, "mean must be one finite number for each channel"),
        ({"mean": ((0.1, 0.2),)}, "mean must be one finite number for each channel"),
    ],
)
def test_a_bad_normalization_is_refused_when_a_model_is_built(normalization, message):
    with pytest.raises(ValueError, match=message):
        echo(**normalization)


def test_inputs_that_do_not_fit_the_normalization_are_refused():
    model = echo(mean=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"mean must have one number for each of 3 channels, got 2"):
        outputs(model, IMAGES)
    with pytest.raises(ValueError, match=r"floats in \[0, 1\], got uint8: divide"):
        outputs(model, jnp.ones([4, 2], jnp.uint8))
