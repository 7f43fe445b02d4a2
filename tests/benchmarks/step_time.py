"""When codes pay: time of one reduction against the links' bandwidth, by a model of measured and counted parts.

    python tests/benchmarks/step_time.py [FIGURE.png]

A worker of n encodes d values, decodes n slices of d / n, encodes d / n and decodes d, in the time measured here for
25 million values and taken to grow with d; it sends (n - 1) / n of both messages, counted from their shapes, at the
bandwidth of its link. The peer is a float32 all-reduce along a ring, which sends 8 d (n - 1) / n bytes and computes
nothing. Latencies and overlap with the backward pass are left out: both would move all lines alike. The break-even
bandwidth is where a codec's time equals the peer's; on slower links it pays. `throttled.py` holds the model against two
processes.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp

from jaxrobust.aggregation import codecs, wire_bits

MEASURED, WORKERS, ROUNDS, BUCKET = 25_000_000, 16, 5, 1024
DIMENSIONS, BANDWIDTHS = (25_000_000, 1_000_000_000), (1e8, 1e9, 1e10, 1e11)
CODECS = {
    "bfloat16": codecs.bfloat16(),
    "QSGD (largest value), 8 bits": codecs.qsgd_inf(8, BUCKET),
    "QSGD (largest value), 4 bits": codecs.qsgd_inf(4, BUCKET),
    "NUQSGD, 4 bits": codecs.nuqsgd(4, BUCKET),
    "ALQ, 3 bits": codecs.alq(3, BUCKET),
    "signs with error feedback": codecs.error_feedback(codecs.sign(BUCKET)),
}


def seconds(function, *arguments):
    """Median of several runs, compiled before."""
    jax.block_until_ready(function(*arguments))
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def measure(codec, x):
    """Seconds to encode and to decode a value, bytes of a value on the wire."""
    state = codec.init(x.size)
    encode = jax.jit(lambda x, state: codec.encode(jax.random.key(0), x, state))
    decode = jax.jit(codec.decode)
    wire, _ = encode(x, state)
    return seconds(encode, x, state) / x.size, seconds(decode, wire, state[0]) / x.size, wire_bits(wire) / 8 / x.size


def model(dimension, bandwidth, encode, decode, size, workers=WORKERS):
    """Seconds of one reduction."""
    share = (workers - 1) / workers
    return dimension * ((1 + 1 / workers) * encode + 2 * decode + 2 * share * size / bandwidth)


def main(figure=None):
    """Print the table, and draw it."""
    x = jax.random.normal(jax.random.key(0), (MEASURED,)) * jnp.exp(jnp.linspace(-3, 3, MEASURED))
    parts = {name: measure(codec, x) for name, codec in CODECS.items()}
    plain = (0.0, 0.0, 4.0)
    print(f"{jax.devices()[0].device_kind}, {WORKERS} workers; seconds of one reduction, float32 all-reduce first")
    for dimension in DIMENSIONS:
        print(f"d = {dimension:,} | " + " | ".join(f"{bandwidth / 1e9:g} GB/s" for bandwidth in BANDWIDTHS))
        for name, part in {"float32": plain, **parts}.items():
            print(f"{name} | " + " | ".join(f"{model(dimension, bandwidth, *part):.4g}" for bandwidth in BANDWIDTHS))
    print("codec | encode, ns a value | decode, ns a value | bytes a value | pays below GB/s")
    share = (WORKERS - 1) / WORKERS
    for name, (encode, decode, size) in parts.items():
        breaks_even = 2 * share * (4 - size) / ((1 + 1 / WORKERS) * encode + 2 * decode)
        print(f"{name} | {1e9 * encode:.2f} | {1e9 * decode:.2f} | {size:.3f} | {breaks_even / 1e9:.3g}")
    if figure:
        draw(figure, parts, plain)


def draw(path, parts, plain):
    """Time against bandwidth for 25 million values."""
    import matplotlib.pyplot as plt
    import numpy as np

    bandwidths = np.logspace(8, 11, 61)
    canvas, axis = plt.subplots(figsize=(7, 4))
    axis.loglog(bandwidths / 1e9, [model(DIMENSIONS[0], b, *plain) for b in bandwidths], color="black", label="float32")
    for name, part in parts.items():
        axis.loglog(bandwidths / 1e9, [model(DIMENSIONS[0], b, *part) for b in bandwidths], label=name)
    axis.set(
        xlabel="bandwidth of a link, GB/s", ylabel="seconds", title="One reduction of 25 million values, 16 workers"
    )
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    canvas.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main(*sys.argv[1:])
