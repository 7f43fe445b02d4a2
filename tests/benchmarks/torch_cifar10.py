"""The recipe of configs/cifar10_trades.py in plain PyTorch (extra `peers`): training is right, not only running.

    python tests/benchmarks/torch_cifar10.py DIRECTORY [SEED ...]

Same network, images, epochs, augmentation, TRADES attack, one-cycle schedule, weight decay and evaluation; only the
images are read with the library. Prints clean and PGD-20 accuracy at 8/255 on all 10,000 test images for each seed.
"""

import math
import sys
import time

import jax
import numpy as np
import torch
from networks import network
from torch.nn import functional

from jaxrobust import data

EPOCHS, BATCH, STEPS, RADIUS, STEP_SIZE, BETA, PEAK, DECAY = 8, 128, 3120, 8 / 255, 2 / 255, 6.0, 0.1, 5e-4


def read(source):
    """All examples of a source as tensors, images [n, channel, height, width] in [0, 1]."""
    state = source.init(jax.random.key(0))
    batch = source.batch(state, 0, np.arange(source.size, dtype=np.int32), source.size)
    order = np.argsort(batch.index)
    images = np.asarray(batch.inputs, np.float32)[order].transpose(0, 3, 1, 2)
    return torch.from_numpy(images.copy()), torch.from_numpy(np.asarray(batch.targets)[order].astype(np.int64))


def crop_and_flip(images):
    """Random crops of images padded by 4, flipped with probability 1/2."""
    padded = functional.pad(images, (4, 4, 4, 4))
    rows, columns = torch.randint(0, 9, (2, len(images)))
    flips = torch.rand(len(images)) < 0.5
    crops = [padded[i, :, r : r + 32, c : c + 32] for i, (r, c) in enumerate(zip(rows, columns, strict=True))]
    return torch.stack([crop.flip(-1) if flip else crop for crop, flip in zip(crops, flips, strict=True)])


def ascend(net, images, loss, steps, start):
    """Signed gradient ascent within the ball and the box."""
    attacked = (images + start).clamp(0, 1)
    for _ in range(steps):
        attacked.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(net(attacked)), attacked)
        moved = attacked.detach() + STEP_SIZE * gradient.sign()
        attacked = torch.minimum(torch.maximum(moved, images - RADIUS), images + RADIUS).clamp(0, 1)
    return attacked


def divergence(logits, probabilities):
    """KL(probabilities || softmax(logits)) of every example."""
    return functional.kl_div(functional.log_softmax(logits, 1), probabilities, reduction="none").sum(1)


def one_cycle(step):
    """Cosine from PEAK / 25 to PEAK over 30 % of the steps, and to PEAK / 250,000 over the rest."""

    def between(a, b, share):
        return a + (b - a) * (1 - math.cos(math.pi * share)) / 2

    turn = int(0.3 * STEPS)
    if step < turn:
        return between(PEAK / 25, PEAK, step / turn)
    return between(PEAK, PEAK / 25e4, (step - turn) / (STEPS - turn))


def train(images, labels):
    """TRADES with Nesterov momentum and weight decay on everything but biases."""
    net = network("small_cnn")
    weights = [p for p in net.parameters() if p.ndim > 1]
    biases = [p for p in net.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, PEAK, momentum=0.9, nesterov=True)
    order = torch.cat([torch.randperm(len(images)) for _ in range(EPOCHS + 1)])
    for step in range(STEPS):
        rows = order[step * BATCH : (step + 1) * BATCH]
        x, y = crop_and_flip(images[rows]), labels[rows]
        with torch.no_grad():
            clean = functional.softmax(net(x), 1)

        def robust_term(logits, clean=clean):
            return divergence(logits, clean).sum()

        attacked = ascend(net, x, robust_term, 10, 0.001 * torch.randn_like(x))
        z = net(x)
        loss = functional.cross_entropy(z, y) + BETA * divergence(net(attacked), functional.softmax(z, 1)).mean()
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def accuracy(net, images, labels):
    """Clean accuracy, and accuracy under PGD-20 on those that are right."""
    clean, robust = 0, 0
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        right = net(x).argmax(1) == y
        start = RADIUS * (2 * torch.rand_like(x) - 1)
        attacked = ascend(net, x, lambda z, y=y: functional.cross_entropy(z, y, reduction="sum"), 20, start)
        clean += int(right.sum())
        robust += int((right & (net(attacked).argmax(1) == y)).sum())
    return 100 * clean / len(images), 100 * robust / len(images)


def main(directory, seeds):
    """Train and evaluate for each seed."""
    splits = data.cifar10(directory)
    images, labels = read(splits.train)
    test_images, test_labels = read(splits.test)
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        began = time.perf_counter()
        net = train(images, labels)
        seconds = time.perf_counter() - began
        found.append(accuracy(net, test_images, test_labels))
        print(f"seed {seed}: clean {found[-1][0]:.2f} %, PGD-20 {found[-1][1]:.2f} %, {seconds:.0f} s", flush=True)
    mean, spread = np.mean(found, 0), np.ptp(found, 0)
    print(f"mean: clean {mean[0]:.2f} % (range {spread[0]:.2f}), PGD-20 {mean[1]:.2f} % (range {spread[1]:.2f})")


if __name__ == "__main__":
    main(sys.argv[1], [int(word) for word in sys.argv[2:]] or [0, 1, 2])
