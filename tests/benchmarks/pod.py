"""Compile the WideResNet's training step for a TPU v5e-256, ahead of time and without a TPU, and state what it needs.

    pip install 'jaxrobust[tpu]'
    JAX_PLATFORMS=cpu python tests/benchmarks/pod.py [DEPTH WIDTH BATCH]

The compiler is the TPU's own (`libtpu`); only shapes are given to it, so no image is read and nothing runs.
"""

import os
import sys
import time

# What a TPU machine would find out about itself; there is none here.
for name, value in {
    "SKIP_MDS_QUERY": "1",
    "ACCELERATOR_TYPE": "v5litepod-256",
    "WORKER_HOSTNAMES": "localhost",
}.items():
    os.environ.setdefault(f"TPU_{name}", value)

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust import attacks, data, geometry, models, objectives, train

TOPOLOGY = "v5e:16x16"


def experiment(depth, width, batch_size):
    """The recipe of configs/cifar10_wide_resnet.py on images that need not exist."""
    import optax

    images = jnp.zeros((50_000, 32, 32, 3), jnp.uint8)
    source = data.arrays(images, jnp.zeros(50_000, jnp.int32), classes=10)
    return train.Experiment(
        model=models.wide_resnet(depth, width, activation=jax.nn.silu, dtype=jnp.bfloat16),
        data=data.transformed(source, data.crop(4), data.flip()),
        objective=objectives.trades(
            geometry.linf(),
            8 / 255,
            beta=5.0,
            steps=10,
            step_size=2 / 255,
            start=attacks.uniform_start,
            label_smoothing=0.1,
            attack_in_training_mode=True,
        ),
        optimizer=optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9, nesterov=True)),
        average=train.moving_average(0.995),
        batch_size=batch_size,
    )


def compile_step(depth, width, batch_size, topology=TOPOLOGY):
    """Compile, and return the compiled step with the seconds that took."""
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    mesh = topologies.make_mesh(chips, (len(chips.devices),), ("data",))
    chosen = experiment(depth, width, batch_size)
    trainer = train.prepare_training(chosen, mesh)
    state, reduction = jax.eval_shape(trainer.init)
    source = jax.eval_shape(chosen.data.init, jax.random.key(0))

    def placed(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    began = time.perf_counter()
    lowered = trainer.step.lower(placed(state, P()), placed(reduction, P("data")), placed(source, P()), ())
    return lowered.compile(), time.perf_counter() - began, len(chips.devices)


def main(depth=28, width=10, batch_size=2048):
    """Print memory per chip and the collectives of the compiled step."""
    compiled, seconds, chips = compile_step(depth, width, batch_size)
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    total -= memory.alias_size_in_bytes
    print(
        f"WRN-{depth}-{width}, batch {batch_size}, {TOPOLOGY} ({chips} chips): compiled in {seconds:.0f} s; per chip "
        f"{total / 2**20:.0f} MiB = arguments {memory.argument_size_in_bytes / 2**20:.0f} + temporaries "
        f"{memory.temp_size_in_bytes / 2**20:.0f} + outputs {memory.output_size_in_bytes / 2**20:.0f} - shared "
        f"{memory.alias_size_in_bytes / 2**20:.0f}"
    )
    text = compiled.as_text()
    print({name: text.count(f" {name}(") + text.count(f" {name}-start(") for name in ("all-reduce", "all-gather")})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
