"""Two levels: exact inside a group, packed between groups."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import aggregate, all_reduce, attackers, codecs, collectives, hostile, rules

HOSTS, DEVICES, KEY = 4, 2, jax.random.key(1)
CODEC = codecs.qsgd_inf(bits=4, bucket_size=8)


def rows(dimension=37):
    return jax.random.normal(jax.random.key(0), (HOSTS, DEVICES, dimension))


def make(**options):
    return all_reduce("host", key=KEY, inner_axis="device", inner_workers=DEVICES, **options)


def stacked(reduce, rows):
    state = reduce.init(rows[0, 0])
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (HOSTS, DEVICES, *jnp.shape(leaf))), state)


@functools.cache
def program(reduce):
    return jax.jit(jax.vmap(jax.vmap(reduce.update, axis_name="device"), axis_name="host"))


def on_one_device(reduce, rows):
    return program(reduce)(rows, stacked(reduce, rows))


def compiled(reduce, rows):
    mesh = jax.make_mesh((HOSTS, DEVICES), ("host", "device"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def each(row, state):
        found = reduce.update(row[0, 0], jax.tree.map(lambda leaf: leaf[0, 0], state))
        return jax.tree.map(lambda leaf: leaf[None, None], found)

    both = P("host", "device")
    mapped = jax.shard_map(each, mesh=mesh, in_specs=both, out_specs=both, check_vma=False)
    return jax.jit(mapped).lower(rows, stacked(reduce, rows)).compile()


def test_the_mean_of_means_is_the_mean():
    reduced, _ = on_one_device(make(), rows())
    np.testing.assert_allclose(reduced, np.broadcast_to(rows().mean((0, 1)), reduced.shape), atol=1e-6)


def test_a_rule_joins_the_means_of_the_groups():
    reduced, _ = on_one_device(make(rule=rules.median()), rows())
    expected = np.median(np.asarray(rows()).mean(1), axis=0)
    np.testing.assert_allclose(reduced[2, 1], expected, atol=1e-6)
    assert not np.allclose(expected, np.median(np.asarray(rows()).reshape(8, -1), axis=0), atol=1e-3)


def test_devices_agree_with_one_device_and_with_each_other():
    reduce = make(codec=CODEC, broadcast_codec=CODEC, rule=rules.trimmed_mean(faulty=1))
    apart, state = compiled(reduce, rows())(rows(), stacked(reduce, rows()))
    together, _ = on_one_device(reduce, rows())
    np.testing.assert_allclose(apart, together, rtol=1e-5, atol=1e-6)
    for other in np.asarray(apart).reshape(8, -1):
        np.testing.assert_array_equal(other, apart[0, 0])
    assert np.asarray(state.shared.count).tolist() == [[1] * DEVICES] * HOSTS


def test_only_a_packed_slice_goes_from_group_to_group():
    big = rows(4096)
    reduce = make(codec=codecs.qsgd_inf(4, 64), broadcast_codec=codecs.qsgd_inf(4, 64))
    found = collectives(compiled(reduce, big).as_text())
    packed = [one for one in found if one.dtype == "u8"]
    # Half of the codes, for there are two devices; out and back, three quarters of it to others.
    assert sum(one.sent for one in packed) == 2 * 3 / 4 * 4096 / 2 / 2
    # Inside a group each sends half of its gradient, and gathers the halves; nobody sums the whole.
    inside = [(one.kind, one.sent) for one in found if one.dtype == "f32" and one.elements == 4096]
    assert sorted(inside) == [("all-gather", 4 * 2048), ("all-to-all", 4 * 2048)]
    assert not [one for one in found if one.kind == "all-reduce" and one.elements >= 2048]


def test_a_rule_sees_whole_vectors_and_not_slices():
    """Each half of a vector alone would lead Krum to another group."""
    centers = jnp.array([[0.0, 9.0], [0.1, -9.0], [5.0, 0.1], [-5.0, 0.0]])[:, None, :].repeat(DEVICES, 1)
    vectors = jnp.repeat(centers, 8, axis=-1) + 0.01 * jax.random.normal(jax.random.key(2), (HOSTS, DEVICES, 16))
    reduced, _ = on_one_device(make(rule=rules.krum_byzfl(faulty=1)), vectors)
    expected = aggregate(rules.krum_byzfl(faulty=1), vectors.mean(1))
    np.testing.assert_allclose(reduced[0, 0], expected, atol=1e-6)
    halves = [aggregate(rules.krum_byzfl(faulty=1), vectors.mean(1)[:, half]) for half in (slice(8), slice(8, 16))]
    assert not np.allclose(jnp.concatenate(halves), expected, atol=1e-3)


def test_slices_round_by_keys_of_their_own():
    reduced, _ = on_one_device(make(codec=CODEC), jnp.tile(rows(16)[:, :, :8], 2))
    assert not np.array_equal(reduced[0, 0, :8], reduced[0, 0, 8:])


def test_levels_are_equal_everywhere():
    statistics = codecs.Statistics(codecs.steps((0,), 1))
    both = make(codec=codecs.alq(3, 8, statistics=statistics), broadcast_codec=codecs.alq(4, 8, statistics=statistics))
    scaled = rows(64) * jnp.where(jnp.arange(64) < 32, 1.0, jnp.linspace(0.1, 30.0, 64) ** 2)
    # Where slices differ, so do their statistics, and all of them move all levels.
    _, state = on_one_device(both, scaled)
    for levels in (state.shared.codec.levels, state.shared.broadcast.levels):
        levels = np.asarray(levels).reshape(HOSTS * DEVICES, -1)
        np.testing.assert_array_equal(levels, np.broadcast_to(levels[0], levels.shape))
    # The control: the statistics of half of the slices give other levels.
    _, halved = on_one_device(both, jnp.tile(scaled[:, :, :32], 2))
    assert not np.array_equal(halved.shared.codec.levels, state.shared.codec.levels)


@pytest.mark.parametrize("value", [jnp.nan, 1e6])
def test_what_ails_one_slice_of_a_group_is_said_by_all(value):
    """Coordinate 3 of group 2 is in its first device's slice alone."""
    clean, reduce = 1 + 0.1 * rows(40), make(rule=rules.median())
    reduced, state = on_one_device(reduce, clean.at[2, 1, 3].set(value))
    assert np.unique(state.shared.dropped).tolist() == [int(np.isnan(value))]
    assert np.unique(state.shared.suspicion.suspect).tolist() == [2]
    if np.isnan(value):
        # It is left out as a whole: in no slice has it a say.
        others = jnp.median(clean.mean(1)[jnp.array([0, 1, 3])], axis=0)
        np.testing.assert_allclose(reduced[1, 1], others, rtol=1e-6)
    _, state = on_one_device(reduce, clean)
    assert (np.unique(state.shared.dropped).tolist(), np.unique(state.shared.suspicion.suspect).tolist()) == ([0], [-1])


def test_a_hostile_worker_makes_its_group_suspect():
    big = 1 + 0.1 * rows(400)
    reduce = hostile(make(rule=rules.median()), attackers.constant(1e6), faulty=1)
    reduced, state = on_one_device(reduce, big)
    assert np.abs(reduced).max() < 2
    assert np.asarray(state.shared.suspicion.suspect).tolist() == [[0] * DEVICES] * HOSTS


def test_a_group_lags_where_all_of_its_slices_do():
    """Group 2 repeats the first half of its mean gradient, which is one device's slice; then all of it."""
    reduce = make(rule=rules.median())
    step, fresh, other = program(reduce), rows(40), jax.random.normal(jax.random.key(5), (HOSTS, DEVICES, 40))
    for repeated, named in ((20, -1), (40, 2)):
        state = stacked(reduce, fresh)
        _, state = step(fresh, state)
        _, state = step(other.at[2, :, :repeated].set(fresh[2, :, :repeated]), state)
        assert np.unique(state.shared.suspicion.suspect).tolist() == [named]


@pytest.mark.parametrize("faulty", [1, 2])
def test_hostile_workers_are_whole_groups(faulty):
    seen = []

    def attacker(key, honest, own):
        seen.append((honest.shape, own.shape))
        return own * 0 + 50.0

    reduced, _ = on_one_device(hostile(make(), attacker, faulty=faulty), rows())
    expected = (50.0 * faulty + rows()[faulty:].mean(1).sum(0)) / HOSTS
    np.testing.assert_allclose(reduced[3, 1], expected, rtol=1e-5)
    assert set(seen) == {((HOSTS - faulty, 37), (faulty, 37))}


def test_long_slices_fill_tiles(monkeypatch):
    monkeypatch.setattr(importlib.import_module("jaxrobust.aggregation.all_reduce"), "TILE", 8)
    # Slices of 19 are longer than 8 * 8 / 8: they are filled up to 24, in the state and on the wire.
    reduce = make(codec=codecs.error_feedback(codecs.sign(8)))
    reduced, state = on_one_device(reduce, rows())
    assert jax.tree.leaves(state.own.codec)[0].shape[-1] == 24
    exact, _ = on_one_device(make(rule=rules.trimmed_mean(faulty=1)), rows())
    expected = aggregate(rules.trimmed_mean(faulty=1), rows().mean(1))
    np.testing.assert_allclose(exact[1, 0], expected, atol=1e-6)
    assert reduced.shape == (HOSTS, DEVICES, 37)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="inner_workers must be positive, and 1 without an inner_axis, got 0"):
        all_reduce("host", inner_axis="device", inner_workers=0)
    with pytest.raises(ValueError, match="inner_workers must be positive, and 1 without an inner_axis, got 2"):
        all_reduce("host", inner_workers=2)
    with pytest.raises(ValueError, match="inner_workers must be the 2 of device, got 3"):
        on_one_device(all_reduce("host", rule=rules.median(), inner_axis="device", inner_workers=3), rows())
