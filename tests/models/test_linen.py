"""Linen modules as models: explicit statistics, synchronized over mapped axes, refusals."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxrobust import models
from jaxrobust.models.layers import SYMMETRIC
from jaxrobust.models.preact_resnet import PreactivationResNet


class Net(nn.Module):
    """Batch norm alone, with decay 0.9."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name)(x)


def test_running_statistics_move_as_worked_by_hand():
    """Inputs 1, 3: mean 2, biased variance 1; running mean 0 -> 0.2 -> 0.38, variance 1 -> 1."""
    model, inputs = models.linen(Net()), jnp.array([[1.0], [3.0]])
    params, state = model.init(jax.random.key(0), inputs)
    seen = []
    for _ in range(2):
        outputs, state = model.apply(params, state, inputs, train=True)
        seen.append(float(state["batch_stats"]["BatchNorm_0"]["mean"][0]))
    np.testing.assert_allclose(seen, [0.2, 0.38], rtol=1e-6)
    np.testing.assert_allclose(state["batch_stats"]["BatchNorm_0"]["var"], [1.0], rtol=1e-6)
    np.testing.assert_allclose(outputs[:, 0], [-1, 1], rtol=1e-5)
    evaluated, after = model.apply(params, state, inputs, train=False)
    np.testing.assert_allclose(evaluated[:, 0], [0.62, 2.62], rtol=1e-5)
    assert after is state


def test_examples_depend_on_each_other_in_training_alone():
    model, inputs = models.linen(Net()), jnp.array([[1.0], [3.0], [0.0]])
    params, state = model.init(jax.random.key(0), inputs)

    def first(inputs, train):
        return model.apply(params, state, inputs, train=train)[0][0]

    np.testing.assert_array_equal(first(inputs, False), first(inputs[:2], False))
    assert np.abs(first(inputs, True) - first(inputs[:2], True)) > 0.1


def test_a_module_without_batch_norm_has_neither_state_nor_over():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(2)(x)

    model = models.linen(Plain())
    assert model.over is None
    assert model.init(jax.random.key(0), jnp.ones([1, 3]))[1] == {}


WORKERS = 4


def network():
    """A small residual network with batch norm, in 64 bits."""
    net = PreactivationResNet(10, 4, (4,), 1, jnp.tanh, SYMMETRIC, False, jnp.float64, jnp.float64)
    return models.linen(net)


def mapped_by_vmap(step, images, labels):
    split = [part.reshape(WORKERS, -1, *part.shape[1:]) for part in (images, labels)]
    losses, grads, states = jax.jit(jax.vmap(step, axis_name="data"))(*split)
    return losses.mean(), jax.tree.map(lambda g: g.mean(0), grads), jax.tree.map(lambda s: s[0], states)


def mapped_by_two_vmaps(step, images, labels):
    split = [part.reshape(2, WORKERS // 2, -1, *part.shape[1:]) for part in (images, labels)]
    mapped = jax.vmap(jax.vmap(step, axis_name="worker"), axis_name="data")
    losses, grads, states = jax.jit(mapped)(*split)
    return losses.mean(), jax.tree.map(lambda g: g.mean((0, 1)), grads), jax.tree.map(lambda s: s[0, 0], states)


def mapped_by_shard_map(step, images, labels):
    mesh = jax.make_mesh((WORKERS,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:WORKERS])

    def worker(images, labels):
        loss, grads, state = step(images, labels)
        return *jax.lax.pmean((loss, grads), "data"), state

    specs = {"in_specs": P("data"), "out_specs": P()}
    return jax.jit(jax.shard_map(worker, mesh=mesh, check_vma=False, **specs))(images, labels)


@pytest.mark.parametrize(
    ("mapped", "axes"),
    [(mapped_by_vmap, "data"), (mapped_by_two_vmaps, ("data", "worker")), (mapped_by_shard_map, "data")],
)
def test_workers_over_an_axis_train_as_one_on_the_whole_batch(drawn, mapped, axes):
    with jax.enable_x64(True):
        model = network()
        images = jax.random.uniform(jax.random.key(0), (16, 4, 4, 3), jnp.float64)
        labels = jnp.arange(16) % 10
        params, state = drawn(model.over(axes), images)

        def step(model, images, labels):
            def loss(params):
                logits, after = model.apply(params, state, images, train=True)
                return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), after

            (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            return value, gradient, after

        def gap(model):
            found = mapped(partial(step, model), images, labels)
            return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, alone)))

        alone = jax.jit(partial(step, model))(images, labels)
        assert gap(model.over(axes)) < 1e-12
        assert gap(model) > 1e-3


def test_over_needs_its_axis_in_training_alone():
    model, inputs = models.linen(Net()).over("data"), jnp.ones([2, 3])
    params, state = model.init(jax.random.key(0), inputs)
    model.apply(params, state, inputs, train=False)
    with pytest.raises(NameError, match="data"):
        model.apply(params, state, inputs, train=True)


def test_a_module_that_names_its_axis_itself_starts_without_it():
    _, state = models.linen(Net(axis_name="data")).init(jax.random.key(0), jnp.ones([2, 3]))
    assert set(state) == {"batch_stats"}


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(ValueError, match=r"must be a flax.linen.Module, got .*: build it first"):
        models.linen(Net)
    with pytest.raises(ValueError, match=r"module must take \(inputs, train\), got Dense.*: add the argument `train`"):
        models.linen(nn.Dense(3))
