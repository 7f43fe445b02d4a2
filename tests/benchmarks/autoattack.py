"""Standard AutoAttack in l-infinity against torchattacks: the same weights and images, one after the other, in one run.

    pip install 'jaxrobust[peers]' && pip install --no-deps torchattacks==3.5.1
    python tests/benchmarks/autoattack.py digits [IMAGES [BATCH]]
    python tests/benchmarks/autoattack.py DIRECTORY [IMAGES [BATCH]]       a ResNet-8 on CIFAR-10
    python tests/benchmarks/autoattack.py DIRECTORY IMAGES BATCH RUN       what configs/cifar10_trades.py trained there

torchattacks asks for torchvision, and calls it for no attack of this suite: without a build of it, --no-deps is enough.
Its suite takes 10 steps in APGD and FAB where AutoAttack takes 100, as ours does: it is run with both.
A network is trained in PyTorch for SECONDS by PGD and its weights are carried over, or those of a run of this library
are carried over to PyTorch; both must give the same logits.
Printed: robust accuracy after each attack; seconds of both, ours with and without compilation; how many images each
asked the network about; the time that our questions take if nothing but the network runs, and the ratio of the whole to
it; and the ratio of the two networks' bare forward and backward passes, which no attack can beat.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchattacks
from networks import network
from torch import nn
from torch.nn import functional

from jaxrobust import attacks, data, geometry
from jaxrobust.train.evaluate import evaluate_run

SECONDS, ROUNDS = 60.0, 20
CONFIG = Path(__file__).parents[2] / "configs" / "cifar10_trades.py"


def torch_network(kind):
    """A small one for digits of 8 x 8, a ResNet-8 for CIFAR-10."""
    if kind != "digits":
        return network("resnet8")
    layers = [nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def train(net, images, labels, radius):
    """PGD adversarial training of five steps, for so many seconds."""
    optimizer, generator = torch.optim.Adam(net.parameters(), 1e-3), np.random.default_rng(0)
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        rows = generator.integers(len(images), size=64)
        x, y = images[rows], labels[rows]
        delta = torch.empty_like(x).uniform_(-radius, radius)
        for _ in range(5):
            delta.requires_grad_()
            slope = torch.autograd.grad(functional.cross_entropy(net((x + delta).clamp(0, 1)), y), delta)[0]
            delta = (delta.detach() + radius / 3 * slope.sign()).clamp(-radius, radius)
        optimizer.zero_grad()
        functional.cross_entropy(net((x + delta).clamp(0, 1)), y).backward()
        optimizer.step()
    return net.eval()


def carried_over(kind, net):
    """The same function of `[batch, height, width, channel]` in JAX, its weights as arguments."""
    weights = {name: jnp.asarray(value.detach().numpy()) for name, value in net.state_dict().items()}

    def convolution(w, name, x, stride=1):
        kernel, side = w[f"{name}.weight"].transpose(2, 3, 1, 0), x.shape[1]
        pads = [(1, 1)] * 2
        shape = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=shape)
        assert y.shape[1] == side // stride
        return y + w[f"{name}.bias"]

    def dense(w, name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def digits(w, x):
        x = jax.nn.relu(convolution(w, "2", jax.nn.relu(convolution(w, "0", x)), 2)).transpose(0, 3, 1, 2)
        return dense(w, "7", jax.nn.relu(dense(w, "5", x.reshape(len(x), -1))))

    def resnet(w, x):
        x = jax.nn.relu(convolution(w, "0", x))
        for name, stride in (("2", 1), ("3", 2), ("4", 2)):
            y = convolution(w, f"{name}.second", jax.nn.relu(convolution(w, f"{name}.first", x, stride)))
            x = x[:, ::stride, ::stride]
            x = jax.nn.relu(y + jnp.pad(x, [(0, 0)] * 3 + [(0, y.shape[-1] - x.shape[-1])]))
        return dense(w, "7", x.mean((1, 2)))

    return jax.tree_util.Partial(digits if kind == "digits" else resnet, weights)


def of_a_run(run):
    """The small network of a run of CONFIG, and the same in PyTorch."""
    predict, _ = evaluate_run(Path(run), CONFIG, evaluation=lambda key, predict, source: predict)
    # Here positions and then channels, in a patch and before the last layer; there channels first.
    layers = jax.tree.map(np.asarray, predict.args[0])
    first, last = layers["Conv_0"], layers["Dense_0"]
    first["kernel"] = first["kernel"].reshape(3, 3, 4, 3, -1).transpose(0, 1, 3, 2, 4).reshape(3, 3, 12, -1)
    last["kernel"] = last["kernel"].reshape(4, 4, 64, 10).transpose(2, 0, 1, 3).reshape(1024, 10)
    net = network("small_cnn")
    places = [layer for layer in net.body if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for layer, name in zip(places, ("Conv_0", "Conv_1", "Conv_2", "Dense_0"), strict=True):
            kernel = layers[name]["kernel"]
            order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            layer.weight.copy_(torch.from_numpy(kernel.transpose(order).copy()))
            layer.bias.copy_(torch.from_numpy(layers[name]["bias"].copy()))
    return predict, net.eval()


class Counted(nn.Module):
    """A network that counts the images it was asked about."""

    def __init__(self, net):
        super().__init__()
        self.net, self.images = net, 0

    def forward(self, x):
        self.images += len(x)
        return self.net(x)


def torch_suite(model, radius, steps):
    """What torchattacks.AutoAttack puts together, of so many steps; its own has 10."""
    options = {"norm": "Linf", "eps": radius, "n_restarts": 1, "seed": 0}
    return torchattacks.MultiAttack(
        [
            torchattacks.APGD(model, loss="ce", steps=steps, **options),
            torchattacks.APGDT(model, n_classes=10, steps=steps, **options),
            torchattacks.FAB(model, multi_targeted=True, n_classes=10, steps=steps, **options),
            torchattacks.Square(model, n_queries=5000, **options),
        ]
    )


def seconds(call):
    """Median of a call's time, after a first one."""
    call()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def bare(logits_fn, images, labels):
    """Seconds of a forward pass, and of one with the gradient, of our network for one batch."""
    forward = jax.jit(lambda f, x: f(x))
    slope = jax.jit(jax.grad(lambda x, f: attacks.losses.cross_entropy(f(x), labels).sum()))
    return (
        seconds(lambda: jax.block_until_ready(forward(logits_fn, images))),
        seconds(lambda: jax.block_until_ready(slope(images, logits_fn))),
    )


def torch_bare(net, images, labels):
    """Seconds of a forward and backward pass of theirs."""

    def call():
        x = images.clone().requires_grad_()
        torch.autograd.grad(functional.cross_entropy(net(x), labels, reduction="sum"), x)

    return seconds(call)


def trained(kind, train_split, radius):
    """A network that PyTorch trained, and the same in JAX."""
    learned, seen = attacks.in_order(jax.random.key(0), train_split, 20_000)
    images = torch.from_numpy(learned.transpose(0, 3, 1, 2).copy())
    net = train(torch_network(kind), images, torch.from_numpy(seen).long(), radius)
    return carried_over(kind, net), net


def main(kind="digits", count="200", batch="50", run=None):
    """Print the figures."""
    count, batch = int(count), int(batch)
    radius = 0.2 if kind == "digits" else 8 / 255
    splits = data.digits() if kind == "digits" else data.cifar10(kind)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    images, labels = attacks.in_order(jax.random.key(0), splits.test, count)
    logits_fn, net = of_a_run(run) if run else trained(kind, splits.train, radius)
    theirs_images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    theirs_labels = torch.from_numpy(np.asarray(labels)).long()
    with torch.no_grad():
        apart = np.abs(np.asarray(logits_fn(images)) - net(theirs_images).numpy()).max()
    assert apart < 1e-3, f"the two networks are {apart} apart"

    suite = attacks.autoattack(geometry.linf(), radius)
    began = time.perf_counter()
    found = attacks.evaluate(jax.random.key(0), logits_fn, images, labels, suite, batch_size=batch)
    whole = time.perf_counter() - began
    accuracies = ", ".join(f"{name} {row.mean():.3f}" for name, row in zip(found.names, found.correct, strict=True))
    print(f"ours: clean {found.clean_accuracy:.3f}, {accuracies}")
    rows = zip(found.names, found.questions, found.seconds, found.compile_seconds, strict=True)
    for name, questions, running, compiling in rows:
        print(f"  {name}: {questions:,} questions, {running:.1f} s and {compiling:.1f} s of compilation")

    other = {}
    for steps in (10, 100):
        counted = Counted(net)
        began = time.perf_counter()
        attacked = torch_suite(counted, radius, steps)(theirs_images, theirs_labels)
        other[steps] = time.perf_counter() - began
        with torch.no_grad():
            left = (net(attacked).argmax(1) == theirs_labels).float().mean()
        told = f"robust {left:.3f} in {other[steps]:.1f} s, {counted.images:,} images forward"
        print(f"torchattacks, {steps} steps: {told}", flush=True)

    forward, backward = bare(logits_fn, jnp.asarray(images[:batch]), jnp.asarray(labels[:batch]))
    needed = sum(
        q * (forward if suite[name].loss is None else backward) / batch
        for name, q in zip(found.names, found.questions, strict=True)
    )
    running = found.seconds.sum()
    for steps, took in other.items():
        ratios = f"{running / took:.3f} without compilation, {whole / took:.3f} with it"
        print(f"ours / torchattacks of {steps} steps: {ratios}")
    print(f"ours / bare evaluations of {batch}: {running / needed:.2f} ({running:.1f} s, {needed:.1f} s)")
    peer = torch_bare(net, theirs_images[:batch], theirs_labels[:batch])
    print(f"bare forward and backward of {batch}, ours / PyTorch: {backward / peer:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
