"""The small convolutional network: patches and refusals; its laws are in test_networks.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import models
from jaxrobust.models.small_cnn import _patches


def test_a_patch_becomes_the_channels_of_one_position():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    expected = [[[0, 1, 4, 5], [2, 3, 6, 7]], [[8, 9, 12, 13], [10, 11, 14, 15]]]
    np.testing.assert_array_equal(_patches(image, 2)[0], expected)
    assert not np.array_equal(image.reshape(1, 2, 2, 4)[0], expected)
    np.testing.assert_array_equal(_patches(image, 1), image)


def test_patches_take_the_first_convolutions_input_apart():
    def kernel(patch):
        inputs = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
        params, _ = jax.eval_shape(models.small_cnn(patch=patch).init, jax.random.key(0), inputs)
        return params["Conv_0"]["kernel"].shape

    assert (kernel(1), kernel(2)) == ((3, 3, 3, 16), (3, 3, 12, 16))


def test_what_it_cannot_be_built_of_is_refused():
    with pytest.raises(ValueError, match=r"channels must name at least one convolution, got \(\): for none"):
        models.small_cnn(channels=())
    with pytest.raises(ValueError, match=r"channels\[0\] must be positive, got -4"):
        models.small_cnn(channels=(-4, 8))
    with pytest.raises(ValueError, match="patch must be positive, got 0"):
        models.small_cnn(patch=0)
    with pytest.raises(ValueError, match="patch must divide the images' sides, got 3 for 8 x 8"):
        jax.eval_shape(models.small_cnn(patch=3).init, jax.random.key(0), jnp.zeros([1, 8, 8, 1]))
