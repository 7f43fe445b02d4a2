"""Compile a packed all-reduce for TPU pods, ahead of time and without a TPU: bytes on the wire, memory of a chip.

    pip install 'jaxrobust[tpu]'
    JAX_PLATFORMS=cpu python tests/benchmarks/pod_wire.py [TOPOLOGY DIMENSION RULE]

TOPOLOGY is v5e:16x16 (256 chips) or v5p:4x4x8 (128), RULE mean, median, trimmed_mean or krum. Codes have 4 bits in
buckets of 1,024 in both hops. The peer is a float32 all-reduce of the same length along a ring.
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

from jaxrobust.aggregation import all_reduce, codecs, collectives, rules

RULES = {
    "mean": rules.mean(),
    "median": rules.median(),
    "trimmed_mean": rules.trimmed_mean(faulty=16),
    "krum": rules.krum(faulty=16),
}


def compile_reduction(topology, dimension, rule):
    """The compiled reduction of one float32 vector, and the number of chips."""
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    mesh = topologies.make_mesh(chips, (len(chips.devices),), ("data",))
    codec = codecs.qsgd_inf(bits=4, bucket_size=1024)
    reduce = all_reduce("data", codec=codec, broadcast_codec=codec, rule=RULES[rule], key=jax.random.key(0))

    def stacked(leaf):
        shape = (len(chips.devices), *leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, P("data")))

    def each(row, state):
        reduced, state = reduce.update(row[0], jax.tree.map(lambda leaf: leaf[0], state))
        return reduced, jax.tree.map(lambda leaf: leaf[None], state)

    vector = jax.ShapeDtypeStruct((dimension,), jnp.float32)
    state = jax.tree.map(stacked, jax.eval_shape(reduce.init, vector))
    mapped = jax.shard_map(each, mesh=mesh, in_specs=P("data"), out_specs=(P(), P("data")), check_vma=False)
    compiled = jax.jit(mapped, donate_argnums=(0, 1)).lower(stacked(vector), state).compile()
    return compiled, len(chips.devices)


def main(topology="v5e:16x16", dimension="25e6", rule="mean"):
    """Print what one reduction sends and needs."""
    began, length = time.perf_counter(), int(float(dimension))
    compiled, chips = compile_reduction(topology, length, rule)
    memory, found = compiled.memory_analysis(), collectives(compiled.as_text())
    sent, plain = sum(one.sent for one in found), 2 * (chips - 1) / chips * 4 * length
    print(
        f"{rule}, {length:,} coordinates, {topology} ({chips} chips): a chip sends {sent / 1e6:.2f} MB, "
        f"{plain / sent:.2f} times less than float32; temporaries {memory.temp_size_in_bytes / 2**20:.0f} MiB beside "
        f"{memory.argument_size_in_bytes / 2**20:.0f} MiB of gradient; compiled in {time.perf_counter() - began:.0f} s"
    )
    for one in sorted(found, key=lambda one: -one.sent):
        print(f"  {one.kind} {one.dtype}[{one.elements:,}] {one.sent / 1e3:,.1f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
