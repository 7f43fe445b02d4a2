"""Columns split over devices give what whole columns give, and n x n numbers are all that crosses between them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import rules

WORKERS, COLUMNS, KEY = 11, 40, jax.random.key(3)
DISTANCE = {
    "krum": rules.krum(2),
    "krum_l3": rules.krum_mixtailor(2, 3),
    "multi_krum": rules.multi_krum(2),
    "geometric_median": rules.geometric_median(),
    "minimum_diameter": rules.minimum_diameter(2),
    "smea": rules.smea(2),
    "caf": rules.caf(2),
    "monna": rules.monna(2),
    "centered_clipping": rules.centered_clipping(1.0),
    "mixing": rules.nearest_neighbor_mixing(rules.krum(2), faulty=2),
    "clipping": rules.clipping(rules.krum(2)),
}
OTHERS = {
    "mean": rules.mean(),
    "trimmed_mean": rules.trimmed_mean(2),
    "bulyan": rules.bulyan(2),
    "bucketing": rules.bucketing(rules.median()),
    "mixtailor": rules.mixtailor([rules.krum(2), rules.median(), rules.centered_clipping(1.0)]),
}
TABLE = DISTANCE | OTHERS
# Rules that choose: shares are of whole workers, equal to the bit.
CHOOSING = ("krum", "krum_l3", "multi_krum", "minimum_diameter", "smea", "monna", "mixing", "clipping")


@pytest.fixture(scope="module")
def rows():
    hostile = jax.random.normal(jax.random.key(0), (WORKERS, COLUMNS)).at[:2].set(1e30)
    return hostile.at[4].set(jnp.nan), jnp.arange(WORKERS) != 4


def whole(rule, rows, alive):
    return jax.jit(lambda rows: rule.apply(KEY, rows, alive, rule.init(*rows.shape), None))(rows)


def sharded(rule, alive, *, mesh=(8,), names=("data",)):
    axis = names[0] if len(names) == 1 else names

    def local(columns):
        column, _, weights = rule.apply(KEY, columns, alive, rule.init(0, columns.shape[1]), axis)
        return column, weights[None]

    mesh = jax.make_mesh(mesh, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))
    return jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=P(None, axis), out_specs=(P(axis), P(axis)), check_vma=False)
    )


@pytest.mark.parametrize("name", TABLE)
def test_split_over_devices(name, rows):
    wanted, _, shares = whole(TABLE[name], *rows)
    split = sharded(TABLE[name], rows[1]).lower(rows[0]).compile()
    column, weights = split(rows[0])
    np.testing.assert_allclose(column, wanted, rtol=1e-5, atol=1e-5)
    assert np.isfinite(column).all()
    np.testing.assert_array_equal(weights, np.tile(weights[:1], (8, 1)))
    if name in CHOOSING:
        np.testing.assert_array_equal(weights[0] > 0, shares > 0)
    np.testing.assert_allclose(weights[0], shares, rtol=1e-4, atol=1e-5)
    moved = re.findall(
        r"= (\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(", split.as_text()
    )
    assert all(collective == "all-reduce" for _, collective in moved)
    if name in DISTANCE:
        assert moved, "whole vectors were never asked for"
    for kind, _ in moved:
        for shape in re.findall(r"\[([\d,]*)\]", kind):
            assert np.prod([int(size) for size in shape.split(",") if size]) <= (WORKERS + 1) ** 2


@pytest.mark.parametrize("name", ["krum", "krum_l3", "centered_clipping", "trimmed_mean", "bulyan"])
def test_split_over_a_mapped_axis_and_over_two_axes(name, rows):
    rule = TABLE[name]
    wanted, _, shares = whole(rule, *rows)
    pieces = jnp.moveaxis(rows[0].reshape(WORKERS, 8, COLUMNS // 8), 1, 0)

    def local(columns):
        column, _, weights = rule.apply(KEY, columns, rows[1], rule.init(0, columns.shape[1]), "data")
        return column, weights

    column, weights = jax.jit(jax.vmap(local, axis_name="data"))(pieces)
    np.testing.assert_allclose(column.reshape(-1), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weights, np.tile(shares, (8, 1)), rtol=1e-4, atol=1e-5)
    column, _ = sharded(rule, rows[1], mesh=(4, 2), names=("host", "device"))(rows[0])
    np.testing.assert_allclose(column, wanted, rtol=1e-5, atol=1e-5)
    # Each piece by itself would have decided otherwise, were the axis not told.
    if name == "krum":
        alone = [whole(rule, piece, rows[1])[0] for piece in pieces]
        assert not np.allclose(np.concatenate(alone), wanted)


def test_pairwise_distances_of_split_columns(rows):
    x, _ = rows
    honest = x[jnp.array([2, 3, 5, 6, 7])]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def split(measure):
        return jax.jit(jax.shard_map(measure, mesh=mesh, in_specs=P(None, "data"), out_specs=P(), check_vma=False))(
            honest
        )

    exact = np.asarray(honest, np.float64)
    for p in (1, 2, 2.5, 16, np.inf):
        wanted = np.linalg.norm(exact[:, None] - exact[None], ord=p, axis=2)
        np.testing.assert_allclose(split(lambda c, p=p: rules.distances(c, p, "data")), wanted, rtol=1e-5)
        # A sixteenth power of 1e-3 is 0 in single precision; the distance is not.
        np.testing.assert_allclose(rules.distances(1e-3 * honest, p), 1e-3 * wanted, rtol=1e-5)
    centered = exact - np.median(exact, axis=0)
    np.testing.assert_allclose(split(lambda c: rules.gram(c, "data")), centered @ centered.T, rtol=1e-4, atol=1e-4)
    assert not np.allclose(rules.gram(honest[:, :5]), centered @ centered.T, atol=1e-1)


def test_gram_keeps_small_differences_far_from_the_origin():
    near = 1e-2 * jax.random.normal(jax.random.key(1), (7, 30))
    far = near + 1e3

    def squares(products):
        norms = np.diagonal(products)
        return norms[:, None] + norms[None] - 2 * np.asarray(products)

    exact = np.asarray(far, np.float64)
    wanted = np.sum((exact[:, None] - exact[None]) ** 2, axis=2)
    lies = far.at[0].set(1e30)
    np.testing.assert_allclose(squares(rules.gram(lies))[1:, 1:], wanted[1:, 1:], rtol=1e-3, atol=1e-9)
    # About the origin nothing is left of them.
    assert not np.allclose(squares(far @ far.T), wanted, rtol=0.5)
