"""Adaptive codecs: the same levels on every worker, on the steps that a schedule asks for, better than fixed ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrobust import geometry
from jaxrobust.aggregation import codecs
from jaxrobust.aggregation.codecs import adaptive, levels

WORKERS, DIMENSION, BUCKET = 8, 700, 256
EVERY = codecs.Statistics(codecs.steps(period=1), components=16)
CODECS = {
    "alq": codecs.alq(3, BUCKET, statistics=EVERY, sweeps=10),
    "alq_normalized": codecs.alq_normalized(3, BUCKET, statistics=EVERY, sweeps=10),
    "amq": codecs.amq(3, BUCKET, statistics=EVERY),
    "amq_normalized": codecs.amq_normalized(3, BUCKET, statistics=EVERY),
}


def gradients(seed=0, workers=WORKERS, dimension=DIMENSION):
    """Layers of several scales, other ones on each worker."""
    draws = np.random.default_rng(seed).standard_t(4, (workers, dimension))
    return (draws * np.repeat([3.0, 0.1, 1.0, 0.02], -(-dimension // 4))[:dimension]).astype(np.float32)


def step(codec, shared, x):
    return codec.adapt(codec.observe(x, (shared, ()), "data"))


@functools.cache
def by_vmap(codec):
    return jax.jit(jax.vmap(functools.partial(step, codec), in_axes=(None, 0), axis_name="data", out_axes=0))


def by_shard_map(codec):
    mesh = jax.make_mesh((WORKERS,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(shared, x):
        return jax.tree.map(lambda leaf: leaf[None], step(codec, shared, x[0]))

    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=False))


@pytest.mark.parametrize("name", CODECS)
def test_twenty_adaptations_leave_levels_equal_to_the_bit(name):
    codec, found = CODECS[name], {}
    for kind, mapped in (("vmap", by_vmap(codec)), ("shard_map", by_shard_map(codec))):
        shared, moved = codec.init(DIMENSION)[0], set()
        for seed in range(20):
            everywhere = jax.device_get(mapped(shared, gradients(seed)))
            for worker in range(WORKERS):
                np.testing.assert_array_equal(everywhere.levels[worker], everywhere.levels[0])
            shared = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), everywhere)
            moved.add(float(shared.levels[1]))
        assert len(moved) > 10
        assert int(shared.count) == 20
        found[kind] = shared.levels
    np.testing.assert_array_equal(found["vmap"], found["shard_map"])


def test_levels_of_own_statistics_would_differ():
    codec = CODECS["alq"]
    alone = [by_vmap(codec)(codec.init(DIMENSION)[0], row[None]).levels[0] for row in gradients()[:2]]
    assert not np.allclose(alone[0], alone[1], rtol=1e-3)


def adapted(codec, rows):
    shared = by_vmap(codec)(codec.init(rows.shape[1])[0], rows)
    return jax.tree.map(lambda leaf: leaf[0], shared)


rounding_variance = jax.jit(codecs.rounding_variance, static_argnums=(2, 3))


def relative(rows, values, bucket_size, norm):
    found = [rounding_variance(row, values, bucket_size, norm).sum() for row in rows]
    return float(np.sum(found) / np.sum(rows.astype(np.float64) ** 2))


def test_variance_of_three_bits_is_below_every_fixed_scheme():
    rows, size = gradients(1, 2, 20_000), 2048
    linf, l2 = geometry.linf(), geometry.l2()
    options = {"statistics": codecs.Statistics(codecs.steps())}
    moved = {
        name: relative(rows, adapted(make(3, size, **options), rows).levels, size, linf)
        for name, make in (("alq", codecs.alq), ("alq_normalized", codecs.alq_normalized), ("amq", codecs.amq))
    }
    fixed = [
        relative(rows, make(3, zero_level).values, size, norm)
        for make in (levels.uniform, levels.exponential)
        for zero_level in (True, False)
        for norm in (linf, l2)
    ]
    assert max(moved.values()) < min(fixed)
    assert moved["alq"] <= moved["amq"]
    # As published, by the Euclidean norm with one normal distribution a bucket, it is not.
    published = codecs.alq(
        3, size, norm=l2, exponent=1.0, statistics=codecs.Statistics(codecs.steps(), block_size=None)
    )
    assert relative(rows, adapted(published, rows).levels, size, l2) > moved["alq"]


def test_the_schedule_decides_when_statistics_are_gathered_and_levels_move():
    schedule = codecs.steps(first=(3,), period=100)
    codec = codecs.amq(2, 64, statistics=codecs.Statistics(schedule, samples=2, components=8))
    run = by_vmap(codec)
    shared, history, gathered = codec.init(128)[0], [], []
    for seed in range(5):
        shared = jax.tree.map(lambda leaf: leaf[0], run(shared, gradients(seed, 2, 128)))
        history.append(float(shared.levels[1]))
        gathered.append(float(shared.sums[0].sum()))
    assert history[0] == history[1] == history[2] != history[3] == history[4] != -0.5
    np.testing.assert_allclose(gathered, [0, 0, 2, 0, 0], rtol=1e-6)


def test_collectives_run_in_a_branch_alone():
    codec = CODECS["alq"]
    traced = jax.make_jaxpr(functools.partial(step, codec), axis_env=[("data", 4)])(codec.init(64)[0], jnp.ones(64))
    assert "all_gather" not in {equation.primitive.name for equation in traced.jaxpr.eqns}
    assert "all_gather" in str(traced)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_worker_that_is_not_finite_or_huge_does_not_rule_the_levels(bad):
    codec = CODECS["alq"]
    rows = gradients()
    sick, partly, huge = rows.copy(), rows.copy(), rows.copy()
    sick[0] = bad
    partly[0, 7] = bad
    without = adapted(codec, rows[1:]).levels
    for some in (sick, partly):
        np.testing.assert_allclose(adapted(codec, some).levels, without, rtol=2e-3, atol=1e-6)
    # The control: the worker's own share can be told.
    assert np.abs(adapted(codec, rows).levels / without - 1).max() > 4e-3
    huge[0] *= 1e20
    np.testing.assert_allclose(adapted(codec, huge).levels, adapted(codec, rows).levels, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_levels_stay_where_there_is_nothing_to_follow(value):
    codec = CODECS["alq"]
    shared = adapted(codec, np.full((2, 100), value, np.float32))
    np.testing.assert_array_equal(shared.levels, codec.init(100)[0].levels)
    assert int(shared.count) == 1


def test_sums_of_blocks_by_hand():
    x = np.array([3.0, -1.0, 4.0, 4.0, 0.5, 0.0, 0.0], np.float32)
    sums = adaptive._sums(jnp.asarray(x), 4, 2, 1, np.inf, 2.0)
    r = np.array([0.75, -0.25, 1.0, 1.0, 1.0, 0.0, 0.0])
    scale = np.array([16.0] * 4 + [0.25] * 3)
    # Blocks (3, -1), (4, 4), (.5, 0) and (0): means, unbiased variances, and none of the padding.
    mean = np.array([0.25, 0.25, 1.0, 1.0, 0.5, 0.5, 0.0])
    spread = np.array([0.5, 0.5, 0.0, 0.0, 0.5, 0.5, 0.0])
    share = scale / scale.sum()
    expected = [[1.0], [share @ mean], [share @ (spread + mean**2)]]
    np.testing.assert_allclose(sums, expected, rtol=1e-6)
    assert not np.allclose(r.mean(), sums[1])


def test_error_feedback_passes_the_levels_through():
    codec = codecs.error_feedback(CODECS["amq"])
    shared, own = codec.init(DIMENSION)

    def one(x):
        known = codec.adapt(codec.observe(x, (shared, own), "data"))
        wire, memory = codec.encode(jax.random.key(0), x, (known, own))
        return known.levels, x - codec.decode(wire, known)[: x.size], memory[0]

    moved, left, memory = jax.jit(jax.vmap(one, axis_name="data"))(gradients())
    np.testing.assert_allclose(left, memory, atol=1e-6)
    assert not np.allclose(moved[0], shared.levels)
