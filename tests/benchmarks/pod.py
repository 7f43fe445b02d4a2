"""Compile a configuration's training step for a TPU v5e-256, ahead of time and without a TPU, and state what it needs.

    pip install 'jaxrobust[tpu]'
    JAX_PLATFORMS=cpu python tests/benchmarks/pod.py CONFIG [FLAGS ...]
    JAX_PLATFORMS=cpu python tests/benchmarks/pod.py evaluate [DEPTH WIDTH BATCH]
    JAX_PLATFORMS=cpu python tests/benchmarks/pod.py query [BATCH]

CONFIG is a configuration for CIFAR-10, with its own flags; "evaluate" compiles five iterations of APGD, at the places
of `attacks.evaluate`, on a WideResNet; "query" a gradient of ResNet-20 by all its coordinates, split over the chips.
The compiler is the TPU's own (`libtpu`); images are blank, and nothing runs.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

# What a TPU machine would find out about itself; there is none here.
for name, value in {
    "SKIP_MDS_QUERY": "1",
    "ACCELERATOR_TYPE": "v5litepod-256",
    "WORKER_HOSTNAMES": "localhost",
}.items():
    os.environ.setdefault(f"TPU_{name}", value)

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from jaxrobust import attacks, geometry, models, train, zeroth_order
from jaxrobust.aggregation import collectives
from jaxrobust.attacks import places
from jaxrobust.train.step import example_inputs

TOPOLOGY = "v5e:16x16"


def chips():
    """The pod's chips."""
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices


def placed(tree, sharding):
    """Shapes that lie on the chips."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def blank(directory):
    """CIFAR-10's files, every image black."""
    for split, count in (("train", 50_000), ("test", 10_000)):
        arrays = {"image": np.zeros((count, 32, 32, 3), np.uint8), "label": np.arange(count) % 10}
        np.savez_compressed(Path(directory) / f"{split}.npz", **arrays)


def training_step(config, *flags):
    """A configuration's step, lowered."""
    with tempfile.TemporaryDirectory() as directory:
        blank(directory)
        words = dict(zip((flag.removeprefix("--").replace("-", "_") for flag in flags[::2]), flags[1::2], strict=True))
        given = {name: int(value) if value.isdigit() else value for name, value in words.items()}
        chosen = train.configure(Path(config), {"data_dir": directory, **given}).build()
    trainer = train.prepare_training(chosen, train.make_mesh(list(chips()), chosen.devices_per_worker))
    state, reduction = jax.eval_shape(trainer.init)
    source, whole = jax.eval_shape(chosen.data.init, jax.random.key(0)), NamedSharding(trainer.mesh, P())
    print(f"{config} {' '.join(flags)}: images {example_inputs(chosen).shape[1:]}, batch {chosen.batch_size}")
    return trainer.step.lower(placed(state, whole), placed(reduction, trainer.split), placed(source, whole), ())


def evaluation_step(depth=28, width=10, batch_size=2048):
    """Five iterations of an attack at all places of an evaluation, lowered."""
    mesh = Mesh(np.array(chips()), ("example",))
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("example"))
    images = jax.ShapeDtypeStruct((batch_size, 32, 32, 3), jnp.float32)
    numbers = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    model = models.wide_resnet(depth, width, activation=jax.nn.silu, dtype=jnp.bfloat16)
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    logits = jax.ShapeDtypeStruct((batch_size, 10), jnp.float32)
    search = attacks.apgd(geometry.linf(), 8 / 255)
    states = jax.eval_shape(lambda *held: places.idle(search, *held, None), keys, images, numbers, logits)
    print(f"APGD on WRN-{depth}-{width}, {batch_size} places")
    return places.advance.lower(
        search,
        places.WITH_GRADIENT,
        Partial(_logits(model), placed(params, whole), placed(state, whole)),
        *(placed(held, split) for held in (keys, numbers, states, numbers, images, numbers)),
    )


def query_step(batch_size=256):
    """A gradient from function values, its queries split over all chips, lowered."""
    mesh = Mesh(np.array(chips()), ("query",))
    whole = NamedSharding(mesh, P())
    images = jax.ShapeDtypeStruct((batch_size, 32, 32, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    model = models.resnet20()
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    estimator = zeroth_order.coordinate(axis_name="query")

    def estimate(params, state, images, labels):
        def losses(params):
            logits, _ = model.apply(params, state, images, train=False)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

        return estimator(jax.random.key(0), losses, params).gradient

    mapped = jax.shard_map(estimate, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    print(f"coordinates of ResNet-20, {batch_size} images")
    return jax.jit(mapped).lower(*(placed(held, whole) for held in (params, state, images, labels)))


def _logits(model):
    return lambda params, state, inputs: model.apply(params, state, inputs, train=False)[0]


STEPS = {"evaluate": evaluation_step, "query": query_step}


def main(what, *words):
    """Print memory per chip and what a chip sends in the compiled step."""
    lowered = STEPS[what](*map(int, words)) if what in STEPS else training_step(what, *words)
    began = time.perf_counter()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    total -= memory.alias_size_in_bytes
    print(
        f"{TOPOLOGY} ({len(chips())} chips): compiled in {time.perf_counter() - began:.0f} s; per chip "
        f"{total / 2**20:.0f} MiB = arguments {memory.argument_size_in_bytes / 2**20:.0f} + temporaries "
        f"{memory.temp_size_in_bytes / 2**20:.0f} + outputs {memory.output_size_in_bytes / 2**20:.0f} - shared "
        f"{memory.alias_size_in_bytes / 2**20:.0f}"
    )
    found = collectives(compiled.as_text())
    print(f"{len(found)} collectives, {sum(one.sent for one in found) / 1e6:.2f} MB sent by a chip; the largest:")
    for one in sorted(found, key=lambda one: -one.sent)[:8]:
        print(f"  {one.kind} {one.dtype}[{one.elements:,}] {one.sent / 1e3:,.1f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
