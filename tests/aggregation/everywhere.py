"""A table of codecs and rules over simulated workers, on whatever devices this process has: run by test_everywhere.

    python everywhere.py WAY [PROCESS PORT] [all]
    python everywhere.py compare ONE.json OTHER.json ...

WAY is vmap, pmap, shard_map, nested (two workers on each of two devices), or processes (two of two devices). It prints
a row for each pair: a digest of the packed codes, the levels and the result. With "all" these are all pairs, else every
rule once, the codecs in turn. "compare" says how far such tables are from the first one.
"""

import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

WAY = sys.argv[1]
COUNT = {"vmap": 1, "pmap": 4, "shard_map": 4, "nested": 2, "processes": 2, "compare": 1}[WAY]
os.environ["JAX_PLATFORMS"] = "cpu"
# What compiles faster is inherited from the tests.
FLAGS = f"--xla_force_host_platform_device_count={COUNT} --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import all_reduce, codecs, rules

WORKERS, DIMENSION, STEPS, F = 4, 150, 2, 1
SMALL = {"bucket_size": 16}
STATISTICS = codecs.Statistics(codecs.steps((0, 1), 1))
CODECS = {
    "float32": codecs.float32(),
    "bfloat16": codecs.bfloat16(),
    "qsgd": codecs.qsgd(3, **SMALL),
    "qsgd_inf": codecs.qsgd_inf(4, **SMALL),
    "nuqsgd": codecs.nuqsgd(3, **SMALL),
    "ternary": codecs.ternary(16),
    "sign": codecs.error_feedback(codecs.sign(16)),
    "alq": codecs.alq(3, **SMALL, statistics=STATISTICS),
    "alq_normalized": codecs.alq_normalized(3, **SMALL, statistics=STATISTICS),
    "amq": codecs.amq(3, **SMALL, statistics=STATISTICS),
    "amq_normalized": codecs.amq_normalized(3, **SMALL, statistics=STATISTICS),
}
RULES = {
    "mean": rules.mean(),
    "median": rules.median(),
    "trimmed_mean": rules.trimmed_mean(F),
    "meamed": rules.meamed(F),
    "geometric_median": rules.geometric_median(),
    "krum": rules.krum_byzfl(F),
    "multi_krum": rules.multi_krum_byzfl(F),
    "minimum_diameter": rules.minimum_diameter(F),
    "monna": rules.monna(F),
    "centered_clipping": rules.centered_clipping(1.0),
    "smea": rules.smea(F),
    "caf": rules.caf(F),
    "nearest_neighbor_mixing": rules.nearest_neighbor_mixing(rules.trimmed_mean(F), faulty=F),
    # Four workers are enough for it where nobody lies.
    "bulyan": rules.bulyan(0),
    "bucketing": rules.bucketing(rules.median(), size=2),
    "clipping": rules.clipping(rules.mean(), radius=1.0),
    "adaptive_clipping": rules.adaptive_clipping(rules.mean(), faulty=F),
    "mixtailor": rules.mixtailor([rules.median(), rules.mean(), rules.krum_byzfl(F)]),
}


def gradients(step):
    """One matrix, whose rows are the workers' gradients: no two buckets are alike."""
    rows = np.random.default_rng(step).standard_t(4, (WORKERS, DIMENSION))
    return (rows * np.exp(np.linspace(-4, 1, DIMENSION))).astype(np.float32)


def recording(codec):
    """A codec that remembers its last message."""

    def init(dimension):
        shared, own = codec.init(dimension)
        message = jax.eval_shape(codec.encode, jax.random.key(0), jnp.zeros(dimension), (shared, own))[0]
        return shared, (own, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), message))

    def encode(key, x, state):
        wire, own = codec.encode(key, x, (state[0], state[1][0]))
        return wire, (own, wire)

    def observe(x, state, axis):
        return codec.observe(x, (state[0], state[1][0]), axis)

    return codec._replace(init=init, encode=encode, observe=observe)


def mapped(reduce):
    """The reduction over this way's axes, of arrays with a leading axis of workers."""
    if WAY == "vmap":
        return jax.jit(jax.vmap(reduce.update, axis_name="data"))
    if WAY == "pmap":
        # The first step's arguments lie where the second's do: one program.
        step, place = jax.pmap(reduce.update, axis_name="data"), jax.pmap(lambda *leaves: leaves)
        return lambda row, state: step(*place(row, state))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def each(row, state):
        if WAY == "nested":
            return jax.vmap(reduce.update, axis_name="worker")(row, state)
        found = reduce.update(row[0], jax.tree.map(lambda leaf: leaf[0], state))
        return jax.tree.map(lambda leaf: leaf[None], found)

    step = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False))
    sharding = NamedSharding(mesh, P("data"))

    def place(leaf):
        if leaf.sharding == sharding:
            return leaf
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return lambda row, state: step(place(row), jax.tree.map(place, state))


def collected(leaf):
    """All workers' values on this process."""
    if WAY != "processes":
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def digest(tree):
    """A few letters that change with any bit."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def row(codec, rule):
    """Two steps of one pair."""
    axis = ("data", "worker") if WAY == "nested" else "data"
    options = {"rule": rule, "broadcast_codec": codecs.qsgd_inf(8, 16), "workers": WORKERS}
    reduce = all_reduce(axis, codec=recording(codec), key=jax.random.key(3), **options)
    state = reduce.init(jnp.zeros(DIMENSION))
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (WORKERS, *jnp.shape(leaf))), state)
    update = mapped(reduce)
    for step in range(STEPS):
        reduced, state = update(jnp.asarray(gradients(step)), state)
    reduced, shared, own = jax.tree.map(collected, (reduced, state.shared.codec, state.own.codec))
    for leaf in jax.tree.leaves((reduced, shared)):
        assert all(np.array_equal(leaf[0], other) for other in leaf), "workers part"
    # All of a message but the scales of buckets, which are sums.
    message = jax.tree.leaves(own[1])
    codes = [leaf for leaf in message if leaf.dtype == np.uint8 or len(message) == 1]
    return {
        "codes": digest(codes),
        "levels": jax.tree.map(lambda leaf: leaf[0].tolist(), jax.tree.leaves(shared)),
        "result": reduced[0].tolist(),
    }


def compare(first, *others):
    """Print the pairs whose codes are equal bit for bit, and the largest differences of levels and results."""
    expected = json.loads(Path(first).read_text())
    for path in others:
        found = json.loads(Path(path).read_text())
        assert found.keys() == expected.keys(), "other pairs"
        equal = sum(found[pair]["codes"] == expected[pair]["codes"] for pair in found)
        apart = {"levels": 0.0, "result": 0.0}
        for pair in found:
            for name in apart:
                one, two = (
                    np.concatenate([np.ravel(part) for part in rows[pair][name]] or [np.zeros(1)])
                    for rows in (expected, found)
                )
                apart[name] = max(apart[name], np.max(np.abs(one - two)) / max(np.max(np.abs(one)), 1e-30))
        print(
            f"{path}: codes of {equal} of {len(found)} pairs equal; relative to the largest number, levels are within "
            f"{apart['levels']:.1e}, results within {apart['result']:.1e}"
        )


def main():
    """Print every pair's row."""
    if WAY == "compare":
        compare(*sys.argv[2:])
        return
    if WAY == "processes":
        process, port = int(sys.argv[2]), sys.argv[3]
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    pairs = [(c, r) for c in CODECS for r in RULES]
    if sys.argv[-1] != "all":
        pairs = list(zip(itertools.cycle(CODECS), RULES, strict=False))
    text = json.dumps({f"{c} x {r}": row(CODECS[c], RULES[r]) for c, r in pairs})
    print(text if jax.process_index() == 0 else hashlib.sha256(text.encode()).hexdigest())


if __name__ == "__main__":
    main()
