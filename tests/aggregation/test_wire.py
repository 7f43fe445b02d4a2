"""What a compiled all-reduce sends: bytes, counted in the program that runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import Collective, all_reduce, axes, codecs, collectives, columns_of, rules

WORKERS, DIMENSION, BUCKET = 8, 8 * 4096, 1024
FLOAT32_BYTES = 2 * (WORKERS - 1) / WORKERS * 4 * DIMENSION


def each(update, rows, state):
    found = update(*jax.tree.map(lambda leaf: leaf[0], (rows, state)))
    return jax.tree.map(lambda leaf: leaf[None], found)


@functools.cache
def program(reduce, dimension=DIMENSION):
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (WORKERS, *leaf.shape)), reduce.init(jnp.zeros(dimension)))
    mesh = jax.make_mesh((WORKERS,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    local = functools.partial(each, reduce.update)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    compiled = jax.jit(mapped).lower(jnp.zeros((WORKERS, dimension)), state).compile()
    return tuple(collectives(compiled.as_text()))


def packed(codec, rule=None, back=None):
    rule = rules.mean() if rule is None else rule
    return all_reduce("data", codec=codec, broadcast_codec=back or codec, rule=rule, key=jax.random.key(0))


@pytest.mark.parametrize("rule", [rules.mean(), rules.median(), rules.krum(faulty=2)], ids=["mean", "median", "krum"])
def test_four_bits_send_a_seventh_and_no_vector_of_floats(rule):
    found = program(packed(codecs.qsgd_inf(4, BUCKET), rule))
    sent = sum(one.sent for one in found)
    per_hop = (WORKERS - 1) / WORKERS * DIMENSION * (4 / 8 + 4 / BUCKET)
    large = [one for one in found if one.kind in ("all-to-all", "all-gather") and one.elements > WORKERS]
    assert sum(one.sent for one in large) == 2 * per_hop
    # What a rule and the suspicion need besides are sums of a few numbers for each pair of workers.
    assert sent - 2 * per_hop < 4 * 8 * WORKERS**2 + 1000
    assert FLOAT32_BYTES / (2 * per_hop) >= 7.9
    assert all(
        one.elements <= DIMENSION // BUCKET for one in found if one.dtype.startswith("f") and one.kind != "all-reduce"
    )
    assert all(one.elements <= WORKERS**2 + 8 for one in found if one.kind == "all-reduce")


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_state_says_what_the_program_sends(bits):
    codec, dimension = codecs.qsgd_inf(bits, 64), 1000
    reduce = packed(codec)
    large = [one for one in program(reduce, dimension) if one.kind in ("all-to-all", "all-gather")]
    columns = columns_of(dimension, 64, WORKERS)
    state = reduce.init(jnp.zeros(dimension))
    _, after = jax.vmap(reduce.update, (0, None), axis_name="data")(jnp.zeros((WORKERS, dimension)), state)
    told = float(after.shared.bits[0]) / 8
    assert told == 2 * (WORKERS - 1) * columns * (bits / 8 + 4 / 64)
    # And flags of one bit a worker.
    assert told <= sum(one.sent for one in large) <= told + WORKERS


def test_without_codes_vectors_of_floats_travel():
    """The control: the same count finds them."""
    found = program(all_reduce("data", rule=rules.median()))
    assert {one.kind: one.elements for one in found if one.elements >= DIMENSION // WORKERS} == {
        "all-to-all": DIMENSION,
        "all-gather": DIMENSION,
    }
    exact = program(all_reduce("data"))
    assert [(one.kind, one.elements, one.sent) for one in exact] == [("all-reduce", DIMENSION, FLOAT32_BYTES)]


LINES = {
    "%a = f32[8]{0} all-reduce(f32[8]{0} %x), replica_groups={{0,1,2,3}}, to_apply=%add": ("all-reduce", "f32", 8, 48),
    "%r = f32[2]{0} reduce-scatter(f32[8]{0} %x), replica_groups=[1,4]<=[4]": ("reduce-scatter", "f32", 2, 24),
    "%t = (u8[1,4]{1,0}, u8[1,4]{1,0}) all-to-all(u8[1,4] %x, u8[1,4] %y), replica_groups={{0,1}}": (
        "all-to-all", "u8", 8, 4,
    ),
    "%g = (u8[1,4]{1,0}, u8[4,4]{1,0}) all-gather-start(u8[1,4]{1,0} %x), replica_groups=[1,4]<=[4]": (
        "all-gather", "u8", 16, 12,
    ),
    "%p = (bf16[6]{0}, bf16[6]{0}, u32[], u32[]) collective-permute-start(bf16[6]{0} %x)": (
        "collective-permute", "bf16", 6, 12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_collectives_by_hand(line):
    assert collectives(f"ENTRY {{\n  {line}\n}}") == [Collective(*LINES[line])]
    whole = "HloModule m, num_partitions=4\n%a = f32[8]{0} all-reduce(f32[8]{0} %x), replica_groups={}, to_apply=%add"
    assert collectives(whole) == [Collective("all-reduce", "f32", 8, 48)]
    with pytest.raises(ValueError, match="must say how many devices take part"):
        collectives("%a = f32[8]{0} all-reduce(f32[8]{0} %x), replica_groups={}, to_apply=%add")
    with pytest.raises(ValueError, match="must name a dtype of real numbers"):
        collectives("%a = c64[8]{0} all-reduce(c64[8]{0} %x), replica_groups={{0,1}}, to_apply=%add")
    assert collectives("%d = u8[16] all-gather-done(%g)\n%x = f32[8] add(f32[8] %a, f32[8] %b)") == []


def test_a_gather_over_a_long_axis_goes_in_two_stages(monkeypatch):
    monkeypatch.setattr(axes, "LONG", 2)
    mesh = jax.make_mesh((WORKERS,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = np.arange(WORKERS * 3.0).reshape(WORKERS, 3)

    def gathered(x):
        return axes.gather(x[0], "data")[None]

    step = jax.jit(jax.shard_map(gathered, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False))
    np.testing.assert_array_equal(step(rows), np.broadcast_to(rows, (WORKERS, WORKERS, 3)))
    found = collectives(step.lower(rows).compile().as_text())
    assert [(one.kind, one.elements) for one in found] == [("all-gather", 2 * 3), ("all-gather", 8 * 3)]
    # As many bytes as in one.
    assert sum(one.sent for one in found) == 7 * 3 * 4
    np.testing.assert_array_equal(jax.vmap(lambda x: axes.gather(x, "data"), axis_name="data")(rows)[3], rows)
