"""A gradient from function values by all devices there are: run by test_queries, as one process or as two.

    python shared_queries.py [PROCESS PORT]

It prints the gradient of each estimator that can share its queries, as one line of JSON.
"""

import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
# What compiles faster is inherited from the tests.
FLAGS = f"--xla_force_host_platform_device_count={len(sys.argv)} --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust.zeroth_order import activation, coordinate, uniform_selection


def losses(params, inputs):
    return jnp.sum((jnp.tanh(inputs @ params["w"] + params["b"]) @ params["v"]) ** 2, axis=1)


def main():
    """Print the gradients."""
    if len(sys.argv) > 1:
        jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[1]))
    draw = np.random.default_rng(0)
    shapes = {"w": (7, 13), "b": (13,), "v": (13, 3)}
    params = {name: 0.3 * draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    inputs = draw.standard_normal((8, 7), np.float32)
    mesh = jax.make_mesh((jax.device_count(),), ("query",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, found = NamedSharding(mesh, P()), {"devices": jax.device_count()}
    params, inputs = jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: x[index]), (params, inputs)
    )
    for name, estimator in {
        "coordinate": coordinate(axis_name="query", chunk_size=5),
        "sparse": coordinate(axis_name="query", selection=uniform_selection(0.3, jax.random.key(1))),
        "activation": activation(axis_name="query"),
    }.items():

        def estimate(params, inputs, estimator=estimator):
            return estimator(jax.random.key(0), lambda p: losses(p, inputs), params).gradient

        shared = jax.shard_map(estimate, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
        gradient = jax.jit(shared)(params, inputs)
        found[name] = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)).tolist(), gradient)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
