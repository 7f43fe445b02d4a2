"""One moved parameter, followed as far as it goes: the same values as an evaluation of the whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.sites import trace
from jaxrobust.zeroth_order.structured import after_step

KEY, SIZE = jax.random.key(0), 3
IMAGES = jax.random.normal(jax.random.key(1), (SIZE, 7, 6, 2))
FLAT = jax.random.normal(jax.random.key(2), (SIZE, 5))


class Convolutions(nn.Module):
    """Strides, dilation, odd sides, pooling, batch norm, a residual and a flattening."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 2), strides=(2, 1), padding="SAME")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = x + nn.Conv(3, (3, 3), kernel_dilation=2)(x)
        x = nn.max_pool(nn.silu(x), (2, 2), (2, 2))
        x = nn.Conv(4, (2, 2), padding=[(1, 0), (0, 2)])(x)
        x = nn.avg_pool(jnp.tanh(x), (2, 1), (1, 1))
        return nn.Dense(3)(x.reshape(len(x), -1))


class Grouped(nn.Module):
    """What the rules do not know: grouped and transposed convolutions, layer norm, attention."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), feature_group_count=2)(x)
        x = nn.ConvTranspose(3, (2, 2), strides=(2, 2))(nn.gelu(x))
        x = nn.LayerNorm()(x.mean(1))
        queries, keys, values = (nn.Dense(3)(x) for _ in range(3))
        shares = nn.softmax(jnp.einsum("bqc,bkc->bqk", queries, keys))
        return jnp.einsum("bqk,bkc->bqc", shares, values).mean(1)


def linen(module, inputs):
    variables = jax.jit(module.init)(KEY, inputs)
    rest = {name: value for name, value in variables.items() if name != "params"}
    return variables["params"], lambda params: module.apply({"params": params, **rest}, inputs)


def nchw():
    params = {
        "k": jax.random.normal(KEY, (4, 2, 3, 3)),
        "j": jax.random.normal(KEY, (2, 4, 1, 1)),
        "b": jnp.ones((4, 1, 1)),
    }
    spec = ("NCHW", "OIHW", "NCHW")

    def logits(params):
        x = jnp.moveaxis(IMAGES, -1, 1)
        x = jax.lax.conv_general_dilated(
            x, params["k"], (2, 2), [(0, 1), (1, 0)], lhs_dilation=(2, 1), dimension_numbers=spec
        )
        x = jnp.tanh(x + params["b"])
        return jax.lax.conv_general_dilated(x, params["j"], (1, 1), "SAME", dimension_numbers=spec).sum((2, 3))

    return params, logits


def odd():
    """Tied weights, a left operand, a transposed one, a scan, a product of several axes, an entry that is a result."""
    params = {
        "w": 0.3 * jax.random.normal(KEY, (5, 5)),
        "v": jnp.ones((5, 2, 2)),
        "s": jnp.float32(0.5),
        "b": jnp.ones(1),
    }

    def logits(params):
        x = jnp.tanh(FLAT @ params["w"]) @ params["w"].T
        x = jnp.tanh((params["w"] @ x.T).T) * params["s"] + params["b"]
        x, _ = jax.lax.scan(lambda carry, _: (jnp.sin(carry @ params["w"]), None), x, None, 2)
        return jnp.einsum("bi,ijk->bjk", x, params["v"]).reshape(SIZE, 4)[:, :3] + params["s"]

    return params, logits


def perceptron():
    params = {
        "a": jax.random.normal(KEY, (5, 6)),
        "b": jnp.zeros(6),
        "c": jax.random.normal(KEY, (6, 3)),
        "d": jnp.zeros(3),
    }
    return params, lambda p: jax.nn.relu(FLAT @ p["a"] + p["b"]) @ p["c"] + p["d"]


NETWORKS = {
    "perceptron": perceptron,
    "convolutions": lambda: linen(Convolutions(), IMAGES),
    "grouped": lambda: linen(Grouped(), IMAGES),
    "nchw": nchw,
    "odd": odd,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_moved_entry_gives_the_values_of_the_whole(name):
    with jax.numpy_dtype_promotion("standard"):
        params, logits = NETWORKS[name]()
        leaves, structure = jax.tree.flatten(params)
        random = np.random.default_rng(0)

        def losses(params):
            out = logits(params)
            return jax.nn.logsumexp(out * out[:, ::-1], axis=1) + jnp.sin(2 * out[:, 0])

        program = trace(losses, params)
        known = program.evaluate(leaves)
        base = np.asarray(losses(params))
        for number, leaf in enumerate(leaves):
            picked = jnp.asarray(random.choice(leaf.size, min(leaf.size, 6), replace=False))

            def short(index, number=number):
                return after_step(program, known, number, index, 0.2)

            def whole(index, number=number, leaf=leaf):
                moved = leaf.reshape(-1).at[index].add(0.2).reshape(leaf.shape)
                return losses(structure.unflatten([*leaves[:number], moved, *leaves[number + 1 :]]))

            found, expected = jax.jit(jax.vmap(short))(picked), jax.jit(jax.vmap(whole))(picked)
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
            # The control: entries move the losses, and not alike; softmax does not see what all keys share.
            if name != "grouped" or leaf.ndim > 1:
                assert np.abs(expected - base).max() > 1e-4
            if len(picked) > 1 and leaf.ndim > 1:
                assert np.abs(found - np.roll(expected, 1, axis=0)).max() > 1e-5


def products(function, *arguments):
    """Multiplications in products and convolutions, counted in the jaxpr."""
    total = 0
    for equation in trace(function, arguments).equations:
        if equation.name == "dot_general":
            (contracted, _), _ = equation.options["dimension_numbers"]
            left = trace_shape(function, arguments, equation.inputs[0])
            total += int(np.prod(equation.shapes[0])) * int(np.prod([left[axis] for axis in contracted]))
    return total


def trace_shape(function, arguments, place):
    program = trace(function, arguments)
    if place in program.leaves:
        return jax.tree.leaves(arguments)[program.leaves.index(place)].shape
    return program.constants[place].shape if place in program.constants else program.shape_of(place)


def test_a_weight_of_the_first_layer_costs_a_row_of_the_second():
    params, logits = perceptron()
    leaves = jax.tree.leaves(params)
    program = trace(logits, params)
    known = program.evaluate(leaves)
    first = products(lambda index: after_step(program, known, 0, index[0], 0.1), jnp.int32(3))
    last = products(lambda index: after_step(program, known, 2, index[0], 0.1), jnp.int32(3))
    # A column of the hidden layer meets a row of three; the last layer's weight meets nothing.
    assert (first, last) == (SIZE * 3, 0)
    assert products(lambda p: logits(p[0]), params) == SIZE * (5 * 6 + 6 * 3)
