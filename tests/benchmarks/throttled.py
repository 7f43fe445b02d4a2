"""The model of step_time.py against two processes whose loopback is throttled. Linux, as root.

    python tests/benchmarks/throttled.py [MEGABYTES_PER_SECOND ...]

Each rate gets a network of its own (`unshare --net`), where the loopback alone exists and `tc` bounds it: to twice the
rate, for both directions pass through the same queue. Two processes of one core each reduce 12.5 million values, in
float32 and in codes in both hops; encoding and decoding are timed in the same process, while the other does the same.
"""

import os
import subprocess
import sys
import time

COUNT, ROUNDS, PORT = 12_500_000, 5, 9173
RATES = ("50", "100", "200", "400")


def worker(number, megabytes):
    """One of the two processes."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from jax.sharding import PartitionSpec as P

    jax.distributed.initialize(f"127.0.0.1:{PORT}", 2, number)
    import step_time

    from jaxrobust.aggregation import all_reduce, codecs

    chosen = {"float32": None, "QSGD (largest value), 4 bits": codecs.qsgd_inf(4, 1024)}
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, P("data"))
    x = jax.random.normal(jax.random.key(number), (1, COUNT))
    whole = jax.make_array_from_process_local_data(rows, x)
    for name, codec in chosen.items():
        part = (0.0, 0.0, 4.0) if codec is None else step_time.measure(codec, x[0])
        packed = {} if codec is None else {"codec": codec, "broadcast_codec": codec, "key": jax.random.key(0)}
        reduce = all_reduce("data", **packed)
        state = jax.tree.map(lambda leaf: jax.numpy.stack([leaf, leaf]), reduce.init(x[0]))
        state = jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(rows, leaf[:1], leaf.shape), state)

        def one(row, state, reduce=reduce):
            return reduce.update(row[0], jax.tree.map(lambda leaf: leaf[0], state))[0][None]

        specs = {"in_specs": P("data"), "out_specs": P("data"), "check_vma": False}
        step = jax.jit(jax.shard_map(one, mesh=mesh, **specs))
        jax.block_until_ready(step(whole, state))
        found = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            jax.block_until_ready(step(whole, state))
            found.append(time.perf_counter() - began)
        if number == 0:
            modeled = step_time.model(COUNT, megabytes * 1e6, *part, workers=2)
            print(
                f"{megabytes:g} MB/s | {name} | measured {sorted(found)[ROUNDS // 2]:.3f} s "
                f"({min(found):.3f} to {max(found):.3f}) | model {modeled:.3f} s",
                flush=True,
            )


def main(rates):
    """Run both processes behind each rate."""
    for rate in rates or RATES:
        limit = f"tc qdisc add dev lo root tbf rate {16 * float(rate):.0f}mbit burst 1mb latency 200ms"
        first, second = (f"taskset -c {n} {sys.executable} {__file__} worker {n} {rate}" for n in (0, 1))
        script = f"ip link set lo up && {limit} && {{ {second} & {first} && wait $!; }}"
        subprocess.run(["unshare", "--net", "sh", "-c", script], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(int(sys.argv[2]), float(sys.argv[3]))
    else:
        main(sys.argv[1:])
