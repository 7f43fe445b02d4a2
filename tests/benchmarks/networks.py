"""The library's small networks in PyTorch, layer by layer, for measurements beside it (extra `peers`)."""

import torch
from torch import nn
from torch.nn import functional

from jaxrobust.models import CIFAR10_MEAN, CIFAR10_STD


class Normalized(nn.Module):
    """A network behind the normalization of its inputs."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(CIFAR10_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(CIFAR10_STD).reshape(1, 3, 1, 1))

    def forward(self, x):
        return self.body((x - self.mean) / self.std)


class Block(nn.Module):
    """A residual block without batch norm, with the shortcut that has no parameters."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1)
        self.second = nn.Conv2d(after, after, 3, 1, 1)
        self.grown, self.stride = after - before, stride
        nn.init.zeros_(self.second.weight)

    def forward(self, x):
        y = self.second(functional.relu(self.first(x)))
        x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grown))
        return functional.relu(x + y)


class Preactivation(nn.Module):
    """A residual block with batch norm and SiLU before each convolution, as in WRN-d-w."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(before, momentum=0.01), nn.BatchNorm2d(after, momentum=0.01)])
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.shortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x):
        active = functional.silu(self.norms[0](x))
        y = self.second(functional.silu(self.norms[1](self.first(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(depth, width):
    """WRN-depth-width with SiLU."""
    layers, before = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)], 16
    for stage, channels in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            layers.append(Preactivation(before, channels, 2 if stage and not block else 1))
            before = channels
    head = [nn.BatchNorm2d(before, momentum=0.01), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(before, 10))


def he(module):
    """N(0, 2 / fan_out) kernels and zero biases, as the library's convolutions start."""
    if isinstance(module, nn.Conv2d) and module.weight.abs().sum() > 0:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Linear):
        # LeCun's truncated normal, as Flax's dense layers start.
        std = (1 / module.in_features) ** 0.5
        nn.init.trunc_normal_(module.weight, std=std / 0.87962566, a=-2 * std, b=2 * std)
        nn.init.zeros_(module.bias)


def network(name):
    """`mlp` (256, 256) on digits; `resnet8`, `wrn-DEPTH-WIDTH`, `small_cnn` of configs/cifar10_trades.py on images."""
    if name == "mlp":
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    elif name == "resnet8":
        stem = [nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU()]
        blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
        net = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    elif name.startswith("wrn-"):
        net = wide_resnet(*map(int, name.split("-")[1:]))
    else:
        layers = [nn.PixelUnshuffle(2), nn.Conv2d(12, 32, 3, 1, 1), nn.ReLU()]
        layers += [nn.AvgPool2d(2), nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU()]
        layers += [nn.AvgPool2d(2), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)]
        net = Normalized(nn.Sequential(*layers))
    net.apply(he)
    return net
