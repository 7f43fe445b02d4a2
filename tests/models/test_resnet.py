"""Residual networks against PyTorch's layers with the same weights, in 64 bits, and where they start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import models
from jaxrobust.models.layers import SYMMETRIC
from jaxrobust.models.preact_resnet import PreactivationResNet
from jaxrobust.models.resnet import PlainResNet, ResNet, _shortcut

IMAGES = np.random.default_rng(0).random((4, 8, 8, 3))


class Peer:
    """PyTorch's layers, in the order in which Linen numbers them; inputs are `[batch, channel, height, width]`."""

    def __init__(self, torch, params, statistics):
        self.torch, self.functional = torch, torch.nn.functional
        self.params, self.statistics, self.count = params, statistics, {"Conv": 0, "BatchNorm": 0}

    def tensor(self, array):
        return self.torch.from_numpy(np.array(array))

    def take(self, kind):
        name = f"{kind}_{self.count[kind]}"
        self.count[kind] += 1
        return name

    def convolution(self, x, stride=1):
        layer = self.params[self.take("Conv")]
        kernel, bias = self.tensor(layer["kernel"]).permute(3, 2, 0, 1), layer.get("bias")
        bias = None if bias is None else self.tensor(bias)
        return self.functional.conv2d(x, kernel, bias, stride, padding=kernel.shape[-1] // 2)

    def norm(self, x, train):
        name = self.take("BatchNorm")
        layer, running = self.params[name], self.statistics[name]
        found = [self.tensor(part) for part in (running["mean"], running["var"], layer["scale"], layer["bias"])]
        return self.functional.batch_norm(x, *found, training=train, eps=1e-5)

    def head(self, x):
        layer = self.params["Dense_0"]
        return x.mean((2, 3)) @ self.tensor(layer["kernel"]) + self.tensor(layer["bias"])

    def shortcut(self, x, features, stride):
        return self.functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, features - x.shape[1]))


def post_activation(peer, x, train):
    relu = peer.torch.relu
    x = relu(peer.norm(peer.convolution(x), train))
    for features, stride in ((16, 1), (32, 2), (64, 2)):
        y = peer.norm(peer.convolution(relu(peer.norm(peer.convolution(x, stride), train))), train)
        x = relu(y + peer.shortcut(x, features, stride))
    return peer.head(x)


def without_norm(peer, x, train):
    relu = peer.torch.relu
    x = relu(peer.convolution(x))
    for features, stride in ((16, 1), (32, 2), (64, 2)):
        y = peer.convolution(relu(peer.convolution(x, stride)))
        x = relu(y + peer.shortcut(x, features, stride))
    return peer.head(x)


def pre_activation(peer, x, train):
    silu = peer.functional.silu
    x = peer.convolution(x)
    for changes, stride in ((False, 1), (False, 1), (True, 2), (False, 1)):
        a = silu(peer.norm(x, train))
        shortcut = peer.convolution(a, stride) if changes else x
        y = peer.convolution(a, stride)
        x = shortcut + peer.convolution(silu(peer.norm(y, train)))
    return peer.head(silu(peer.norm(x, train)))


DOUBLE = (jnp.float64, jnp.float64)
CASES = {
    "ResNet": (functools.partial(ResNet, 10, 1, *DOUBLE), post_activation),
    "PlainResNet": (functools.partial(PlainResNet, 10, 1, *DOUBLE), without_norm),
    "PreactivationResNet": (
        functools.partial(PreactivationResNet, 10, 4, (4, 8), 2, jax.nn.silu, SYMMETRIC, False, *DOUBLE),
        pre_activation,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("train", [True, False])
def test_logits_are_those_of_pytorchs_layers(drawn, name, train):
    torch = pytest.importorskip("torch")
    build, peer = CASES[name]
    with jax.enable_x64(True):
        model, images = models.linen(build()), jnp.asarray(IMAGES)
        params, state = drawn(model, images)
        logits = np.asarray(jax.jit(functools.partial(model.apply, train=train))(params, state, images)[0])
    inputs = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)

    def gap(images):
        found = peer(Peer(torch, params, state.get("batch_stats")), images, train).numpy()
        return np.abs(found - logits).max() / np.abs(logits).max()

    assert gap(inputs) < 1e-12
    assert gap(inputs.transpose(2, 3)) > 1e-3


def test_the_shortcut_of_option_a_worked_by_hand():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    shorter = _shortcut(image, 3, 2)
    np.testing.assert_array_equal(shorter[0, ..., 0], [[0, 2], [8, 10]])
    np.testing.assert_array_equal(shorter[0, ..., 1:], np.zeros([2, 2, 2]))
    np.testing.assert_array_equal(_shortcut(image, 1, 1), image)


def test_without_norm_blocks_start_as_their_shortcuts_and_all_but_hidden_kernels_move_at_once(drawn):
    model, images = models.resnet8(), jnp.asarray(IMAGES, jnp.float32)
    closing, opening = (tuple(f"Conv_{i}" for i in order) for order in ((2, 4, 6), (1, 3, 5)))
    start = jax.jit(lambda key: {name: model.init(key, images)[0][name] for name in closing})(jax.random.key(0))
    assert not any(leaf.any() for leaf in jax.tree.leaves(start))
    params, state = drawn(model, images)
    params = {**params, **start}
    without = {**params, **{name: jax.tree.map(jnp.zeros_like, params[name]) for name in opening}}
    apply = jax.jit(functools.partial(model.apply, train=False))
    np.testing.assert_array_equal(apply(params, state, images)[0], apply(without, state, images)[0])
    opened = {**params, "Conv_2": params["Conv_1"]}
    assert jnp.abs(apply(opened, state, images)[0] - apply(params, state, images)[0]).max() > 1e-3
    gradient = jax.grad(lambda params: jnp.sum(apply(params, state, images)[0][:, 0]))(params)
    assert all(bool(gradient[name]["kernel"].any()) != (name in opening) for name in gradient)


def test_kernels_start_with_the_variance_of_the_formula():
    """The mean square of n normal numbers of variance v has standard error v sqrt(2 / n)."""
    gains = {"Conv_0": 2.0, "Conv_1": 2 / 3, "Conv_3": 2 / 3}

    @jax.jit
    def kernels(key):
        params, _ = models.resnet8().init(key, jnp.zeros([1, 8, 8, 3]))
        return {name: params[name]["kernel"] for name in gains}

    for name, kernel in kernels(jax.random.key(1)).items():
        variance, error = gains[name] / (9 * kernel.shape[-1]), np.sqrt(2 / kernel.size)
        assert abs(np.mean(np.square(kernel, dtype=np.float64)) / variance - 1) < 4 * error
        assert abs(np.mean(np.square(kernel, dtype=np.float64)) / (2 * variance) - 1) > 4 * error
