"""Queries split over devices: the gradient of one device, and answers alone on the wire."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import collectives
from jaxrobust.zeroth_order import activation, coordinate, uniform_selection

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
    folded = jax.vmap(estimate(name, "query"), axis_name="query", in_axes=(None, 0))(PARAMS, rows[:5])
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
