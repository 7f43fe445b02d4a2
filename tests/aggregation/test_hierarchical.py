"""Two levels: exact inside a group, packed between groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import all_reduce, codecs, collectives, exact_mean, hierarchical, rules

HOSTS, DEVICES, KEY = 4, 2, jax.random.key(1)
CODEC = codecs.qsgd_inf(bits=4, bucket_size=8)


def rows(dimension=37):
    return jax.random.normal(jax.random.key(0), (HOSTS, DEVICES, dimension))


def make(**options):
    return hierarchical(all_reduce("host", key=KEY, **options), "device", DEVICES)


def stacked(reduce, rows):
    state = reduce.init(rows[0, 0])
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (HOSTS, DEVICES, *jnp.shape(leaf))), state)


def on_one_device(reduce, rows):
    inner = jax.vmap(reduce.update, axis_name="device")
    return jax.jit(jax.vmap(inner, axis_name="host"))(rows, stacked(reduce, rows))


def compiled(reduce, rows):
    mesh = jax.make_mesh((HOSTS, DEVICES), ("host", "device"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def each(row, state):
        found = reduce.update(row[0, 0], jax.tree.map(lambda leaf: leaf[0, 0], state))
        return jax.tree.map(lambda leaf: leaf[None, None], found)

    both = P("host", "device")
    mapped = jax.shard_map(each, mesh=mesh, in_specs=both, out_specs=both, check_vma=False)
    return jax.jit(mapped).lower(rows, stacked(reduce, rows)).compile()


def test_the_mean_of_means_is_the_mean():
    reduced, _ = on_one_device(hierarchical(exact_mean("host"), "device", DEVICES), rows())
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
    assert np.asarray(state.own.shared.count).tolist() == [[1] * DEVICES] * HOSTS


def test_only_a_packed_slice_goes_from_group_to_group():
    big = rows(4096)
    reduce = make(codec=codecs.qsgd_inf(4, 64), broadcast_codec=codecs.qsgd_inf(4, 64))
    found = collectives(compiled(reduce, big).as_text())
    packed = [one for one in found if one.dtype == "u8"]
    # Half of the codes, for there are two devices; out and back, three quarters of it to others.
    assert sum(one.sent for one in packed) == 2 * 3 / 4 * 4096 / 2 / 2
    assert {one.elements for one in found if one.kind == "reduce-scatter"} <= {2048}


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="inner_workers must be positive, got 0"):
        hierarchical(exact_mean("host"), "device", 0)
    with pytest.raises(ValueError, match="inner_workers must be the 2 of device, got 3"):
        on_one_device(hierarchical(exact_mean("host"), "device", 3), rows())
