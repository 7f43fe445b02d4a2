"""Queries split over devices: the gradient of one device, and answers alone on the wire."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import collectives
from jaxrobust.sites import trace
from jaxrobust.zeroth_order import activation, coordinate, uniform_selection
from jaxrobust.zeroth_order.queries import query_bytes

SCRIPT = Path(__file__).with_name("shared_queries.py")

KEY = jax.random.key(0)
PARAMS = {"w": 0.3 * jax.random.normal(KEY, (7, 13)), "b": jnp.zeros(13), "v": jnp.ones((13, 3)), "s": jnp.float32(0.2)}
INPUTS = jax.random.normal(jax.random.key(1), (8, 7))
MAKE = {
    "coordinate": lambda axis: coordinate(axis_name=axis, chunk_size=3),
    "sparse": lambda axis: coordinate(axis_name=axis, selection=uniform_selection(0.3, KEY)),
    "activation": lambda axis: activation(axis_name=axis),
}


def losses(params, inputs):
    return jnp.sum((jnp.tanh(inputs @ params["w"] + params["b"]) @ params["v"] - params["s"]) ** 2, axis=1)


def estimate(name, axis):
    return lambda params, inputs: MAKE[name](axis)(KEY, lambda p: losses(p, inputs), params).gradient


def whole(mesh, function, *axes):
    specs = {"in_specs": (P(), P(*axes)), "out_specs": P(), "check_vma": False}
    return jax.jit(jax.shard_map(function, mesh=mesh, **specs))


@pytest.mark.parametrize("name", MAKE)
def test_devices_share_the_queries_of_one(name):
    alone = jax.jit(estimate(name, None))(PARAMS, INPUTS)
    mesh = jax.make_mesh((8,), ("query",), axis_types=(jax.sharding.AxisType.Auto,))
    shared = whole(mesh, estimate(name, "query"))(PARAMS, INPUTS)
    rows = jnp.broadcast_to(INPUTS, (8, *INPUTS.shape))
    mapped = jax.pmap(estimate(name, "query"), axis_name="query", in_axes=(None, 0))(PARAMS, rows)
    folded = jax.jit(jax.vmap(estimate(name, "query"), axis_name="query", in_axes=(None, 0)))(PARAMS, rows[:5])
    for leaf in PARAMS:
        for other in (shared[leaf], mapped[leaf][3], folded[leaf][4]):
            np.testing.assert_allclose(other, alone[leaf], atol=3e-3 if name != "activation" else 3e-4)
        assert np.abs(alone[leaf]).max() > 0.05
    np.testing.assert_array_equal(mapped["w"][0], mapped["w"][7])


def test_answers_alone_cross_the_wire():
    mesh = jax.make_mesh((8,), ("query",), axis_types=(jax.sharding.AxisType.Auto,))
    found = collectives(whole(mesh, estimate("coordinate", "query")).lower(PARAMS, INPUTS).compile().as_text())
    # Of each leaf one float for each of its coordinates, in whole rounds of eight.
    sizes = sorted(-(-leaf.size // 8) * 8 for leaf in jax.tree.leaves(PARAMS))
    assert sorted(one.elements for one in found) == sizes
    assert {one.kind for one in found} == {"all-gather"}


def test_a_second_axis_holds_the_data():
    mesh = jax.make_mesh((2, 4), ("data", "query"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def averaged(params, inputs):
        return jax.lax.pmean(estimate("activation", "query")(params, inputs), "data")

    split = whole(mesh, averaged, "data")(PARAMS, INPUTS)
    alone = jax.jit(estimate("activation", None))(PARAMS, INPUTS)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=3e-4), split, alone)
    # The control: half of the data has another gradient.
    half = jax.jit(estimate("activation", None))(PARAMS, INPUTS[:4])
    assert np.abs(half["w"] - alone["w"]).max() > 0.01


def started(*words):
    words = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read(processes):
    try:
        found = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), found
    return [json.loads(out.splitlines()[-1]) for out, _ in found]


@pytest.mark.slow
def test_two_processes_share_the_queries_of_one_device():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, second = read([started(0, port), started(1, port)])
    (alone,) = read([started()])
    assert (first.pop("devices"), second.pop("devices"), alone.pop("devices")) == (6, 6, 1)
    assert first == second
    for name, gradient in alone.items():
        for leaf, values in gradient.items():
            np.testing.assert_allclose(first[name][leaf], values, atol=3e-3 if name != "activation" else 3e-4)
            assert np.abs(values).max() > 0.05


def test_what_a_loop_holds_counts():
    def looped(turns, wide):
        def body(carry, _):
            return jnp.sum(jnp.outer(carry, jnp.ones(wide)), axis=1), None

        return trace(lambda w: jnp.sum(jax.lax.scan(body, w, length=turns)[0]), jnp.zeros(3))

    def found(turns, wide):
        program = looped(turns, wide)
        return query_bytes(program, program.evaluate([jnp.zeros(3)]), program.leaves[0])

    # w, what the loop gives, and the largest two of what a turn makes.
    assert 4 * 3 * 1000 <= found(2, 1000) <= 4 * (2 * 3 * 1000 + 20)
    # The turns come one after the other.
    assert found(2, 1000) == found(50, 1000) > 90 * found(2, 1)


def test_a_chunk_keeps_within_its_bytes():
    inputs = jnp.linspace(-1.0, 1.0, 128 * 16).reshape(128, 16)
    params = {"w": 0.1 * jax.random.normal(KEY, (16, 64)), "v": 0.1 * jax.random.normal(KEY, (64, 256))}

    def losses(params):
        return jnp.sum(jnp.tanh(jnp.tanh(inputs @ params["w"]) @ params["v"]) ** 2, axis=1)

    def compiled(make, **options):
        estimate = jax.jit(lambda p: make(**options)(KEY, losses, p).gradient).lower(params).compile()
        return estimate(params), estimate.memory_analysis().temp_size_in_bytes

    for make in (coordinate, activation):
        free, much = compiled(make, chunk_size=256)
        bound, little = compiled(make, chunk_size=256, chunk_bytes=2**21)
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-2), free, bound)
        # Beside the chunk lie what is known at params, and the answers.
        known = 4 * (2 * 128 * (64 + 256) + 64 * 256 + 16 * 64) * 2
        assert little < 2**21 + known < much
    with pytest.raises(ValueError, match="chunk_bytes must be positive, got 0"):
        coordinate(chunk_bytes=0)
