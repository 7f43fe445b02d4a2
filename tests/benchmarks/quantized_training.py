"""CIFAR-10 with quantized gradients: every scheme, three seeds, the recipe of configs/cifar10_quantized.py.

    python tests/benchmarks/quantized_training.py DIRECTORY RESULTS.jsonl [SCHEME ...]      train what is missing
    python tests/benchmarks/quantized_training.py DIRECTORY RESULTS.jsonl sweep             the grid, one seed
    python tests/benchmarks/quantized_training.py table RESULTS.jsonl ...                   print the tables
    python tests/benchmarks/quantized_training.py figure FIGURE.png RESULTS.jsonl ...       draw what was measured
    python tests/benchmarks/quantized_training.py step DIRECTORY                            time of a step, 4-bit ALQ

A scheme is CODEC-BITS-BUCKET, as alq-3-8192; behind it "-both" where both hops are packed, or "-everyN" for levels that
move every N steps in place of 500. A run adds a row to the file: test accuracy, bits sent for a coordinate, and beside
these nominal bits the entropy of the codes and the variance of rounding relative to the gradient, measured every 200
steps on one worker's gradient, with the levels, the gradient's norm and quantiles of its coordinates in their buckets.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxrobust import train
from jaxrobust.aggregation import codecs, unpack
from jaxrobust.train.configuration import load_function
from jaxrobust.train.fit import predictor, sharded
from jaxrobust.train.step import keys_of_run

CONFIG = Path(__file__).parents[2] / "configs" / "cifar10_quantized.py"
SEEDS, STEPS, EVERY = (0, 1, 2), 2000, 200
SCHEMES = (
    "float32-32-1",
    "nuqsgd-4-8192",
    "nuqsgd-4-1024",
    "qsgd_inf-4-8192",
    "nuqsgd_published-3-8192",
    "alq-3-8192",
    "qsgd_inf-3-8192",
    "nuqsgd-3-8192",
    "nuqsgd_inf-3-8192",
    "ternary-2-8192",
    "qsgd-3-8192",
    "alq_normalized-3-8192",
    "amq-3-8192",
    "amq_normalized-3-8192",
    "nuqsgd-4-8192-both",
    "alq-3-8192-both",
)
SCHEDULES = {"qsgd_inf": ("",), "alq": ("-every100", "", "-every2000")}
SWEEP = {
    codec: [f"{codec}-{bits}-{bucket}{every}" for bits in (2, 3, 4) for bucket in (1024, 8192) for every in schedules]
    for codec, schedules in SCHEDULES.items()
}
MARKERS = {"2": "o", "3": "s", "4": "D"}
QUANTILES = (0.5, 0.9, 0.99, 1.0)


def build(scheme, seed, directory):
    """The experiment of a scheme."""
    name, bits, bucket, *more = scheme.split("-")
    flags = {"scheme": name, "bits": int(bits), "bucket_size": int(bucket), "both_hops": more == ["both"]}
    if more and more != ["both"]:
        flags["adapt_every"] = int(more[0].removeprefix("every"))
    return train.configure(CONFIG, {**flags, "steps": STEPS, "seed": seed, "data_dir": directory}).build()


def gradient_of(experiment):
    """`(params, source, step) -> gradient [d]` of the first worker's share of a batch, jitted."""

    @jax.jit
    def gradient(params, source, step):
        rows = jnp.arange(experiment.batch_size // 4)
        batch = experiment.data.batch(source, step, rows, experiment.batch_size)
        keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(9), index))(batch.index)

        def loss(params):
            return jnp.mean(experiment.objective.losses((), keys, experiment.model, params, {}, batch)[0])

        return ravel_pytree(jax.grad(loss)(params))[0]

    return gradient


def measured(codec, levels, vector, bits):
    """Entropy of the codes in bits a coordinate, and squared error of rounding relative to the vector's square."""
    own = jax.tree.map(jnp.zeros_like, codec.init(vector.size)[1])
    wire, _ = codec.encode(jax.random.key(7), vector, (levels, own))
    error = float(jnp.sum((codec.decode(wire, levels)[: vector.size] - vector) ** 2) / jnp.sum(vector**2))
    if not hasattr(wire, "codes"):
        return None, error
    codes = unpack(wire.codes, bits, codec.bucket_size).reshape(-1)[: vector.size]
    return float(codecs.entropy(codecs.symbol_counts(codes, 2**bits))), error


def statistics(vector, bucket_size):
    """Norm of a gradient, and quantiles of its coordinates' sizes relative to the largest of their bucket."""
    buckets = np.abs(np.pad(np.asarray(vector), (0, -vector.size % bucket_size)).reshape(-1, bucket_size))
    largest = buckets.max(axis=1, keepdims=True)
    ratios = (buckets / np.where(largest > 0, largest, 1.0)).reshape(-1)[: vector.size]
    return {"norm": float(jnp.linalg.norm(vector)), "quantiles": np.quantile(ratios, QUANTILES).tolist()}


def run(scheme, seed, directory):
    """Train one scheme with one seed."""
    experiment, bits = build(scheme, seed, directory), int(scheme.split("-")[1])
    trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1]))
    state, reduction = trainer.init()
    source = trainer.place(experiment.data.init(keys_of_run(experiment.seed).data))
    gradient, along, began = gradient_of(experiment), [], time.perf_counter()
    codec = codec_of(scheme)
    for step in range(STEPS):
        if step % EVERY == 0:
            levels = jax.tree.map(lambda leaf: leaf[0], reduction.shared.codec)
            vector = gradient(state.params["model"], source, step)
            entropy, error = measured(codec, levels, vector, bits)
            kept = np.asarray(levels.levels).tolist() if hasattr(levels, "levels") else None
            point = {"step": step, "entropy": entropy, "error": error, "levels": kept}
            along.append(point | statistics(vector, codec.bucket_size))
        state, reduction, metrics = trainer.step(state, reduction, source, ())
    predict = predictor(trainer, state)
    found = experiment.evaluate(keys_of_run(seed).evaluation, predict, sharded(experiment.test, trainer))
    return {
        "scheme": scheme,
        "seed": seed,
        "accuracy": found.metrics["clean"],
        "loss": float(metrics["loss"]),
        "bits": float(metrics["bits"]),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "seconds": round(time.perf_counter() - began, 1),
        "along": along,
    }


def codec_of(scheme):
    """The codec of a scheme, by the configuration's own table."""
    name, bits, bucket, *_ = scheme.split("-")
    return load_function(CONFIG)[0].__globals__["SCHEMES"][name](int(bits), int(bucket))


def table(rows):
    """Print the schemes, best first, against exact averaging."""
    exact = np.mean([row["accuracy"] for row in rows if row["scheme"].startswith("float32")])
    print("scheme | accuracy, mean (least, most) % | against exact | entropy, bits | relative error of rounding")
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        mine = [row for row in rows if row["scheme"] == scheme]
        found = [100 * row["accuracy"] for row in mine]
        entropies = [point["entropy"] for row in mine for point in row["along"] if point["entropy"] is not None]
        errors = [point["error"] for row in mine for point in row["along"]]
        entropy = f"{np.mean(entropies):.2f}" if entropies else "-"
        print(
            f"{scheme} | {np.mean(found):.2f} ({min(found):.2f}, {max(found):.2f}), {len(found)} seeds | "
            f"{np.mean(found) - 100 * exact:+.2f} | {entropy} | {np.mean(errors):.3g}"
        )
    first = {row["scheme"]: 100 * row["accuracy"] for row in rows if row["seed"] == SEEDS[0]}
    for codec, schemes in SWEEP.items():
        found = [first[scheme] for scheme in schemes if scheme in first]
        if found:
            print(
                f"sweep of {codec}, seed {SEEDS[0]}, {len(found)} of {len(schemes)} settings: {min(found):.2f} to "
                f"{max(found):.2f} %, a spread of {max(found) - min(found):.2f} points"
            )


def figure(path, rows):
    """Gradients along training, levels that move, and accuracy against the measured bits of a coordinate."""
    import matplotlib.pyplot as plt

    first = {row["scheme"]: row["along"] for row in rows if row["seed"] == SEEDS[0]}
    canvas, axes = plt.subplots(2, 2, figsize=(11, 8))
    exact = first["float32-32-1"]
    steps = [point["step"] for point in exact]
    axes[0, 0].plot(steps, [point["norm"] for point in exact], color="black")
    axes[0, 0].set(title="Length of one worker's gradient, exact averaging", xlabel="step", ylim=(0, None))
    sized = first["alq-3-8192"]
    # The median is zero for most of a run: units that no example reaches.
    for number, quantile in list(enumerate(QUANTILES))[1:-1]:
        axes[0, 1].semilogy(steps, [point["quantiles"][number] for point in sized], label=f"{quantile:.0%} lie below")
    axes[0, 1].set(title="Coordinates, over the largest of their bucket of 8,192", xlabel="step")
    levels = np.array([point["levels"] for point in sized])
    for level in levels.T:
        axes[1, 0].step(steps, level, where="post", color="tab:blue")
    axes[1, 0].set(title="Levels of ALQ, 3 bits", xlabel="step", ylabel="over the bucket's scale")
    schemes = [scheme for scheme in dict.fromkeys(row["scheme"] for row in rows) if len(scheme.split("-")) == 3]
    names = list(dict.fromkeys(scheme.split("-")[0] for scheme in schemes))
    for scheme in schemes:
        name, width, bucket = scheme.split("-")
        mine = [row for row in rows if row["scheme"] == scheme]
        bits = [point["entropy"] for row in mine for point in row["along"] if point["entropy"] is not None]
        found = np.mean([100 * row["accuracy"] for row in mine])
        if bits and found > 25 and width in MARKERS:
            face = {"color": f"C{names.index(name) % 10}"} | ({} if bucket == "1024" else {"mfc": "white"})
            first_of_name = name not in [line.get_label() for line in axes[1, 1].lines]
            axes[1, 1].plot(np.mean(bits), found, MARKERS[width], label=name if first_of_name else None, **face)
    axes[1, 1].axhline(np.mean([100 * row["accuracy"] for row in rows if row["scheme"] == "float32-32-1"]), color="k")
    axes[1, 1].set(
        title="Test accuracy, %; the line is exact averaging",
        xlabel="entropy of the codes, bits (o s D: 2, 3, 4 nominal; hollow: buckets of 8,192)",
    )
    axes[1, 1].xaxis.label.set_size(8)
    axes[0, 1].legend(frameon=False)
    axes[1, 1].legend(frameon=False, fontsize=8)
    for axis in axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
    canvas.tight_layout()
    canvas.savefig(path, dpi=150)


def step_times(directory, rounds=60):
    """Print the time of a training step with 4-bit ALQ over that of the exact one, taken in turns."""
    made = {}
    for scheme in ("float32-32-1", "alq-4-1024"):
        experiment = build(scheme, 0, directory)
        trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1]))
        source = trainer.place(experiment.data.init(keys_of_run(0).data))
        state, reduction, _ = trainer.step(*trainer.init(), source, ())
        made[scheme] = [trainer, source, state, reduction, []]
    for _ in range(rounds):
        for one in made.values():
            trainer, source, state, reduction, times = one
            began = time.perf_counter()
            state, reduction, _ = jax.block_until_ready(trainer.step(state, reduction, source, ()))
            times.append(time.perf_counter() - began)
            one[2:4] = state, reduction
    plain, packed = (np.array(one[-1]) for one in made.values())
    low, middle, high = np.quantile(packed / plain, (0.25, 0.5, 0.75))
    print(
        f"a step: exact {1e3 * np.median(plain):.1f} ms, ALQ in 4 bits {1e3 * np.median(packed):.1f} ms; ratio "
        f"{np.median(packed) / np.median(plain):.2f}, of neighbors {middle:.2f} ({low:.2f} to {high:.2f})"
    )


def main(directory, results, *schemes):
    """Train what the file does not hold yet."""
    path, seeds = Path(results), SEEDS
    if schemes == ("sweep",):
        schemes, seeds = [scheme for each in SWEEP.values() for scheme in each], SEEDS[:1]
    for seed in seeds:
        for scheme in schemes or SCHEMES:
            rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            if any((row["scheme"], row["seed"]) == (scheme, seed) for row in rows):
                continue
            row = run(scheme, seed, directory)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{scheme} seed {seed}: {100 * row['accuracy']:.2f} % in {row['seconds']} s", flush=True)
            # Compiled programs hold the examples of their run.
            jax.clear_caches()


def rows_of(names):
    """All rows of some files."""
    return [json.loads(line) for name in names for line in Path(name).read_text().splitlines()]


if __name__ == "__main__":
    if sys.argv[1] == "table":
        table(rows_of(sys.argv[2:]))
    elif sys.argv[1] == "figure":
        figure(sys.argv[2], rows_of(sys.argv[3:]))
    elif sys.argv[1] == "step":
        step_times(sys.argv[2])
    else:
        main(*sys.argv[1:])
