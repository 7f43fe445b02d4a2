"""Encoding and decoding of 25 million numbers by every codec, against quantizers in NumPy and PyTorch, in one run.

    python tests/benchmarks/codecs.py [millions] [codec ...]

The peers are what a user would write: norms of buckets, uniform noise, rounding, and bits packed by shifts, with the
same levels and the same bytes on the wire; where levels are not equally spaced, they search them. Each row: times of
both directions together, medians of rounds that alternate, their ratios, and the bytes of numbers encoded and decoded a
second as a share of those a copy moves.
"""

import statistics
import sys
import time

import jax
import numpy as np

from jaxrobust import geometry
from jaxrobust.aggregation import codecs
from jaxrobust.aggregation.codecs import levels

ROUNDS = 5
LINF = geometry.linf()


def rows():
    """Name to (codec, bits, bucket size, levels, largest instead of Euclidean norm)."""
    found = {}
    for bits in (3, 4, 8):
        for size in (1024, 8192):
            uniform, powers = levels.uniform(bits).values, levels.exponential(bits).values
            found[f"qsgd {bits} {size}"] = codecs.qsgd(bits, size), bits, size, uniform, False
            found[f"qsgd_inf {bits} {size}"] = codecs.qsgd_inf(bits, size), bits, size, uniform, True
            found[f"nuqsgd {bits} {size}"] = codecs.nuqsgd(bits, size), bits, size, powers, False
            free = levels.powers(0.5, bits, zero_level=False)
            found[f"alq {bits} {size}"] = codecs.alq(bits, size), bits, size, free, True
    found["ternary 2 8192"] = codecs.ternary(8192), 2, 8192, levels.uniform(2).values, True
    found["sign 1 8192"] = codecs.sign(8192), 1, 8192, None, False
    return found


def numpy_peer(x, bits, size, values, largest, random):
    buckets = np.pad(x, (0, -x.size % size)).reshape(-1, size)
    if values is None:
        scale = np.abs(buckets).mean(1)
        codes = (buckets >= 0).astype(np.uint8)
        values = np.array([-1.0, 1.0], np.float32)
    else:
        scale = np.abs(buckets).max(1) if largest else np.sqrt(np.square(buckets).sum(1))
        r = buckets / np.where(scale > 0, scale, 1)[:, None]
        gap = values[1] - values[0]
        even = np.allclose(np.diff(values), gap)
        below = np.floor((r + 1) / gap).astype(np.int32) if even else np.searchsorted(values, r, side="right") - 1
        below = np.clip(below, 0, values.size - 2)
        up = random.random(r.shape, np.float32) < (r - values[below]) / (values[below + 1] - values[below])
        codes = (below + up).astype(np.uint8)
    stream = np.unpackbits(codes.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    packed = np.packbits(stream.reshape(-1), bitorder="little")
    back = np.unpackbits(packed, bitorder="little")[: codes.size * bits].reshape(-1, bits)
    back = np.packbits(back, axis=1, bitorder="little").reshape(buckets.shape)
    return (scale[:, None] * values[back]).reshape(-1)[: x.size]


def torch_peer(torch, x, bits, size, values, largest):
    buckets = torch.nn.functional.pad(x, (0, -x.numel() % size)).reshape(-1, size)
    if values is None:
        scale = buckets.abs().mean(1)
        codes = (buckets >= 0).to(torch.uint8)
        values = torch.tensor([-1.0, 1.0], device=x.device)
    else:
        scale = buckets.abs().amax(1) if largest else buckets.norm(dim=1)
        values = torch.as_tensor(np.asarray(values), device=x.device)
        r = buckets / scale.clamp(min=1e-30)[:, None]
        gap = float(values[1] - values[0])
        if torch.allclose(values.diff(), values.diff()[0]):
            height = (r + 1) / gap
            below = height.floor().clamp(0, len(values) - 2)
            codes = (below + (torch.rand_like(r) < height - below)).to(torch.uint8)
        else:
            below = (torch.bucketize(r, values, right=True) - 1).clamp(0, len(values) - 2)
            share = (r - values[below]) / (values[below + 1] - values[below])
            codes = (below + (torch.rand_like(r) < share)).to(torch.uint8)
    # Eight codes fill as many bytes as a code has bits.
    shifts = torch.arange(8, device=x.device) * bits
    words = (codes.reshape(-1, 8).to(torch.int64) << shifts).sum(1)
    packed = words.view(torch.uint8).reshape(-1, 8)[:, :bits].contiguous()
    wide = torch.zeros(len(packed), 8, dtype=torch.uint8, device=x.device)
    wide[:, :bits] = packed
    back = (wide.view(torch.int64) >> shifts) & (2**bits - 1)
    return (scale[:, None] * values[back.reshape(buckets.shape)]).reshape(-1)[: x.numel()]


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(arguments):
    """Print the table."""
    millions = [word for word in arguments if word.isdigit()]
    named = [word for word in arguments if not word.isdigit()]
    count = int(millions[0]) * 1_000_000 if millions else 25_000_000
    x = jax.random.normal(jax.random.key(0), (count,))
    host, random = np.asarray(x), np.random.default_rng(0)
    try:
        import torch

        on = torch.as_tensor(np.array(host), device="cuda" if torch.cuda.is_available() else "cpu")
    except ImportError:
        torch = on = None
    copy = jax.jit(lambda x: -x)
    jax.block_until_ready(copy(x))
    moved = statistics.median(seconds(lambda: jax.block_until_ready(copy(x))) for _ in range(ROUNDS))
    print(f"{jax.devices()[0].device_kind}, {count} numbers; a copy moves {8 * count / moved / 1e9:.1f} GB/s")
    print("codec                 encode ms  decode ms  numpy ms  torch ms  numpy/ours  torch/ours  share of a copy")
    for name, (codec, bits, size, values, largest) in rows().items():
        if named and name.split()[0] not in named:
            continue
        state = codec.init(count)
        encode = jax.jit(lambda key, x, codec=codec, state=state: codec.encode(key, x, state)[0])
        decode = jax.jit(lambda wire, codec=codec, state=state: codec.decode(wire, state[0]))
        wire = jax.block_until_ready(encode(jax.random.key(0), x))
        jax.block_until_ready(decode(wire))
        times = {"encode": [], "decode": [], "numpy": [], "torch": []}
        for seed in range(ROUNDS):
            key = jax.random.key(seed)
            times["encode"].append(seconds(lambda: jax.block_until_ready(encode(key, x))))  # noqa: B023
            times["decode"].append(seconds(lambda: jax.block_until_ready(decode(wire))))  # noqa: B023
            if torch is not None:

                def peer():
                    torch_peer(torch, on, bits, size, values, largest)  # noqa: B023
                    if on.is_cuda:
                        torch.cuda.synchronize()

                times["torch"].append(seconds(peer))
            if seed < 2:
                times["numpy"].append(seconds(lambda: numpy_peer(host, bits, size, values, largest, random)))  # noqa: B023
        middle = {side: 1e3 * statistics.median(found) if found else float("nan") for side, found in times.items()}
        ours = middle["encode"] + middle["decode"]
        print(
            f"{name:20} {middle['encode']:10.0f} {middle['decode']:10.0f} {middle['numpy']:9.0f} {middle['torch']:9.0f}"
            f" {middle['numpy'] / ours:11.1f} {middle['torch'] / ours:11.1f} {2e3 * moved / ours:16.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
