"""Laws that every network keeps; a new network is a new row. Counts and dtypes need no computation, only shapes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import models

CIFAR, DIGITS = (32, 32, 3), (8, 8, 1)
wide = models.wide_resnet
# Name -> factory, shape of an image, parameters for ten classes, units before the last layer.
NETWORKS = {
    "mlp": (models.mlp, DIGITS, 64 * 64 + 64 + 64 * 10 + 10, 64),
    "small_cnn": (models.small_cnn, CIFAR, 64_554, 4096),
    "resnet8": (models.resnet8, CIFAR, 75_050, 64),
    "resnet20": (models.resnet20, CIFAR, 269_722, 64),
    "preact_resnet18": (models.preact_resnet18, CIFAR, 11_172_170, 512),
    "WRN-10-1": (partial(wide, 10, 1), DIGITS, 77_562, 64),
    "WRN-28-4": (partial(wide, 28, 4), CIFAR, 5_849_050, 256),
    "WRN-28-10": (partial(wide, 28, 10, jax.nn.silu), CIFAR, 36_479_194, 640),
    "WRN-70-16": (partial(wide, 70, 16, jax.nn.silu), CIFAR, 266_796_506, 1024),
}
SMALL = ("mlp", "small_cnn", "resnet8", "resnet20", "WRN-10-1")
# Published: multiplications and additions of a forward pass on one image, in units of 1e9.
FLOPS = {"WRN-28-4": 1.69, "WRN-28-10": 10.49, "resnet20": 2 * 0.040551}


def images(shape, batch=1, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((batch, *shape), dtype)


def shapes(model, shape):
    return jax.eval_shape(model.init, jax.random.key(0), images(shape))


def count(model, shape):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(model, shape)[0]))


def products(model, shape):
    """Every convolution and matrix product: its output's dtype and its multiplications and additions."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            left, out = equation.invars[0].aval if equation.invars else None, equation.outvars[0].aval
            if equation.primitive.name == "conv_general_dilated":
                kernel = equation.invars[1].aval.shape
                yield out.dtype, 2 * out.size * math.prod(kernel) // kernel[-1]
            elif equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                yield out.dtype, 2 * out.size * math.prod(left.shape[i] for i in contracted)
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):
                    yield from walk(value.jaxpr)

    apply = partial(model.apply, train=False)
    return list(walk(jax.make_jaxpr(apply)(*shapes(model, shape), images(shape)).jaxpr))


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_as_many_as_published(name):
    factory, shape, expected, units = NETWORKS[name]
    assert count(factory(classes=10), shape) == expected
    if name in SMALL:
        assert count(factory(classes=11), shape) == expected + units + 1


@pytest.mark.parametrize("name", FLOPS)
def test_a_forward_pass_costs_what_is_published(name):
    factory, shape, _, _ = NETWORKS[name]
    cost = sum(flops for _, flops in products(factory(), shape)) / 1e9
    assert cost == pytest.approx(FLOPS[name], abs=0.005 if FLOPS[name] > 1 else 1e-6)


def test_the_cost_tells_depths_apart():
    cost = sum(flops for _, flops in products(wide(22, 4), CIFAR)) / 1e9
    assert abs(cost - FLOPS["WRN-28-4"]) > 0.3


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_are_batch_by_class_and_inputs_may_be_of_any_size_of_batch(name, batch):
    factory, shape, _, _ = NETWORKS[name]
    model = factory(classes=7)
    params, state = shapes(model, shape)
    for train in (True, False):
        apply = partial(model.apply, train=train)
        logits, after = jax.eval_shape(apply, params, state, images(shape, batch))
        assert (logits.shape, logits.dtype) == ((batch, 7), jnp.float32)
        assert after == state


@pytest.mark.parametrize("name", [*SMALL, "preact_resnet18"])
def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(name):
    factory, shape, _, _ = NETWORKS[name]
    mixed, plain = factory(dtype=jnp.bfloat16), factory()
    params, state = shapes(mixed, shape)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {jnp.dtype("float32")}
    logits, after = jax.eval_shape(partial(mixed.apply, train=True), params, state, images(shape))
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, after))} == {jnp.dtype("float32")}
    inner = [dtype for dtype, _ in products(mixed, shape)]
    assert inner == [jnp.bfloat16] * (len(inner) - 1) + [jnp.float32]
    assert {dtype for dtype, _ in products(plain, shape)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", SMALL)
def test_64_bits_reach_every_product_and_all_state(name):
    factory, shape, _, _ = NETWORKS[name]
    with jax.enable_x64(True):
        model, inputs = factory(dtype=jnp.float64, param_dtype=jnp.float64), images(shape, dtype=jnp.float64)
        params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
        logits, after = jax.eval_shape(partial(model.apply, train=True), params, state, inputs)
        assert {leaf.dtype for leaf in jax.tree.leaves((params, state, logits, after))} == {jnp.dtype("float64")}
        half = factory(dtype=jnp.float64)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half, shape)[0])} == {jnp.dtype("float32")}
        assert {dtype for dtype, _ in products(half, shape)} == {jnp.dtype("float64")}


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "WRN-10-1"])
def test_mapping_over_networks_and_jit_change_nothing_and_a_step_is_traced_once(drawn, name):
    factory, traces = NETWORKS[name][0], 0
    model = factory()
    inputs = jax.random.uniform(jax.random.key(0), (3, *DIGITS))
    params, state = drawn(model, inputs, copies=2)

    def apply(params, state):
        nonlocal traces
        traces += 1
        return model.apply(params, state, inputs, train=True)

    together, _ = jax.jit(jax.vmap(apply))(params, state)
    one = jax.tree.map(lambda leaf: leaf[1], (params, state))
    traces, compiled = 0, jax.jit(apply)
    logits, after = compiled(*one)
    compiled(one[0], after)
    assert traces == 1
    scale = np.abs(logits).max()
    assert np.abs(together[1] - logits).max() < 1e-5 * scale
    assert np.abs(together[0] - logits).max() > 0.01 * scale


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet18", "WRN-10-1"])
def test_networks_with_batch_norm_can_be_synchronized_and_others_need_not(name):
    assert NETWORKS[name][0]().over is not None
    assert all(NETWORKS[other][0]().over is None for other in ("mlp", "small_cnn", "resnet8"))


@pytest.mark.parametrize("name", [*SMALL, "preact_resnet18"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "classes must be positive, got 0"),
        ({"dtype": jnp.int8}, "dtype must be a floating-point type, got int8: take"),
        ({"param_dtype": jnp.int32}, "param_dtype must be a floating-point type, got int32: take"),
        ({"std": 0.0}, "std must be positive, got 0.0"),
    ],
)
def test_what_no_network_can_be_built_of_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        NETWORKS[name][0](**arguments)


@pytest.mark.parametrize("name", SMALL)
def test_images_that_are_no_floats_or_no_batch_are_refused(name):
    factory, shape, _, _ = NETWORKS[name]
    with pytest.raises(ValueError, match=r"inputs must be floats in \[0, 1\], got uint8: divide"):
        jax.eval_shape(factory().init, jax.random.key(0), images(shape, dtype=jnp.uint8))
    if name != "mlp":
        with pytest.raises(ValueError, match=r"\[batch, height, width, channel\], got shape .*: add the missing axis"):
            jax.eval_shape(factory().init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
