"""What sets wide residual networks apart: depth, padding, and a last layer that may start at 0."""

import functools

import jax
import numpy as np
import pytest

from jaxrobust import models

IMAGES = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))


def paddings(model):
    """Of every 3 x 3 convolution of stride 2."""
    params, state = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    jaxpr = jax.make_jaxpr(functools.partial(model.apply, train=False))(params, state, IMAGES)
    convolutions = [e.params for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    return [p["padding"] for p in convolutions if p["window_strides"] == (2, 2) and any(sum(p["padding"], ()))]


def test_strides_pad_on_the_right_alone_and_those_of_the_preactivation_network_on_both_sides():
    assert paddings(models.wide_resnet(10, 1)) == [((0, 1), (0, 1))] * 2
    assert paddings(models.preact_resnet18()) == [((1, 1), (1, 1))] * 3


@pytest.mark.parametrize("zero", [True, False])
def test_the_head_may_start_at_zero(zero):
    model = models.wide_resnet(10, 1, zero_head=zero)
    head = jax.jit(lambda key: model.init(key, IMAGES)[0]["Dense_0"])(jax.random.key(1))
    assert np.any(head["kernel"]) != zero
    assert not np.any(head["bias"])


@pytest.mark.parametrize(
    ("depth", "message"),
    [(27, "got 27: take 28"), (12, "got 12: take 10"), (4, "got 4: take 10"), (-2, "got -2: take 10")],
)
def test_a_depth_of_another_form_is_refused(depth, message):
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 4 with n > 0, " + message):
        models.wide_resnet(depth, 1)


def test_a_width_of_nothing_is_refused():
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        models.wide_resnet(28, 0)
