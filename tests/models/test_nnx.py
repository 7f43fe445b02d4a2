"""NNX modules as models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrobust import models


class Net(nnx.Module):
    """Twelve layers in a list (positions of two digits), batch norm, and dropout if there is a rate."""

    def __init__(self, *, rate=0.0, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(12)])
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs) if rate else None
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = x + 0.3 * nnx.relu(layer(x))
        x = self.norm(x)
        return self.head(self.drop(x) if self.drop else x)


INPUTS = jax.random.normal(jax.random.key(7), (8, 4))


def test_a_model_computes_what_its_module_does():
    module = Net(rngs=nnx.Rngs(jax.random.key(0)))
    model = models.nnx(lambda rngs: Net(rngs=rngs))
    params, state = model.init(jax.random.key(0), INPUTS)
    for train in (True, False):
        module.train() if train else module.eval()
        logits, state = model.apply(params, state, INPUTS, train=train)
        np.testing.assert_array_equal(logits, module(INPUTS))
        np.testing.assert_array_equal(state["norm"]["mean"], module.norm.mean[...])
    layers = {**params["layers"], "2": params["layers"]["10"], "10": params["layers"]["2"]}
    assert np.abs(model.apply({**params, "layers": layers}, state, INPUTS, train=False)[0] - logits).max() > 1e-3


def test_parameters_are_a_plain_pytree_that_optax_trains():
    model, optimizer = models.nnx(lambda rngs: Net(rngs=rngs)), optax.adam(1e-2)
    params, state = model.init(jax.random.key(0), INPUTS)
    paths = [key for path, _ in jax.tree_util.tree_leaves_with_path((params, state)) for key in path[1:]]
    assert all(isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, str) for key in paths)
    labels, memory, traces = jnp.arange(8) % 3, optimizer.init(params), 0

    @jax.jit
    def step(params, state, memory):
        nonlocal traces
        traces += 1

        def loss(params):
            logits, after = model.apply(params, state, INPUTS, train=True)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), after

        (value, state_after), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, memory = optimizer.update(gradient, memory, params)
        return optax.apply_updates(params, updates), state_after, memory, value

    values = []
    for _ in range(10):
        params, state, memory, value = step(params, state, memory)
        values.append(float(value))
    assert traces == 1
    assert values[-1] < values[0] - 0.1


def test_the_key_draws_the_parameters_unless_a_module_is_given():
    drawn, kept = models.nnx(lambda rngs: Net(rngs=rngs)), models.nnx(module := Net(rngs=nnx.Rngs(5)))
    first, second = jax.random.split(jax.random.key(0))

    def kernel(model, key):
        return np.asarray(model.init(key, INPUTS)[0]["head"]["kernel"])

    assert np.abs(kernel(drawn, first) - kernel(drawn, second)).max() > 0.1
    np.testing.assert_array_equal(kernel(kept, first), kernel(kept, second))
    before = np.asarray(module.head.kernel[...])
    module.head.kernel[...] = jnp.zeros_like(before)
    np.testing.assert_array_equal(kernel(kept, first), before)


def test_over_takes_statistics_over_the_axis():
    model = models.nnx(lambda rngs: Net(rngs=rngs))
    params, state = model.init(jax.random.key(0), INPUTS)
    alone = model.apply(params, state, INPUTS, train=True)

    def gap(model):
        def worker(inputs):
            return model.apply(params, state, inputs, train=True)

        logits, after = jax.vmap(worker, axis_name="data")(INPUTS.reshape(4, 2, 4))
        found = logits.reshape(8, 3), jax.tree.map(lambda leaf: leaf[0], after)
        return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, alone)))

    assert gap(model.over("data")) < 1e-5
    assert gap(model) > 1e-2
    assert models.nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs)).over is None


def test_a_random_stream_advances_in_training_alone():
    model = models.nnx(lambda rngs: Net(rate=0.5, rngs=rngs))
    params, state = jax.jit(model.init)(jax.random.key(0), INPUTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(state["drop"])} == {jnp.dtype("uint32")}
    first, after = model.apply(params, state, INPUTS, train=True)
    again, _ = model.apply(params, state, INPUTS, train=True)
    second, _ = model.apply(params, {**state, "drop": after["drop"]}, INPUTS, train=True)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 0.01
    evaluated, kept = model.apply(params, after, INPUTS, train=False)
    np.testing.assert_array_equal(evaluated, model.apply(params, after, INPUTS, train=False)[0])
    assert kept is after


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Net, r"got <class .*: write nnx\(lambda rngs: Net\(rngs=rngs\)\)"),
        (3, "must be an NNX module or build one from rngs, got 3"),
        (lambda rngs: 3, "must build an NNX module, got "),
    ],
)
def test_what_is_no_module_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        models.nnx(given)
