"""Laws that every codec keeps; a new codec is a new row."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import geometry
from jaxrobust.aggregation import codecs, packed_size, wire_bits
from jaxrobust.aggregation.codecs import levels, quantization
from jaxrobust.typing import Codec

L2, LINF = geometry.l2(), geometry.linf()
DIMENSION, DRAWS = 117, 4000


class Row(NamedTuple):
    """A codec and what the laws need to know of it: width of a code, and levels and norm where it rounds at random."""

    codec: Codec
    bits: int = 32
    values: Any = None
    norm: Any = L2


def uniform(bits, **options):
    return levels.uniform(bits, **options).values


def exponential(bits, **options):
    return levels.exponential(bits, **options).values


ROWS = {
    "float32": Row(codecs.float32()),
    "bfloat16": Row(codecs.bfloat16(), 16),
    "qsgd_2": Row(codecs.qsgd(2, 16), 2, uniform(2)),
    "qsgd_3": Row(codecs.qsgd(3, 16), 3, uniform(3)),
    "qsgd_8": Row(codecs.qsgd(8, 7), 8, uniform(8)),
    "qsgd_3_without_zero": Row(codecs.qsgd(3, 16, zero_level=False), 3, uniform(3, zero_level=False)),
    "qsgd_inf_5": Row(codecs.qsgd_inf(5, 7), 5, uniform(5), LINF),
    "qsgd_inf_4_without_zero": Row(codecs.qsgd_inf(4, 16, zero_level=False), 4, uniform(4, zero_level=False), LINF),
    "nuqsgd_2": Row(codecs.nuqsgd(2, 16), 2, exponential(2)),
    "nuqsgd_3": Row(codecs.nuqsgd(3, 16), 3, exponential(3)),
    "nuqsgd_8": Row(codecs.nuqsgd(8, 16), 8, exponential(8)),
    "nuqsgd_3_without_zero": Row(codecs.nuqsgd(3, 16, zero_level=False), 3, exponential(3, zero_level=False)),
    "nuqsgd_4_maximum": Row(codecs.nuqsgd(4, 16, norm=LINF), 4, exponential(4), LINF),
    "ternary": Row(codecs.ternary(16), 2, uniform(2), LINF),
    "ternary_clipped": Row(codecs.ternary(16, clip=2.5), 2),
    "sign": Row(codecs.sign(16), 1),
    "alq_3": Row(codecs.alq(3, 16), 3, levels.powers(0.5, 3, zero_level=False), LINF),
    "alq_normalized_5": Row(codecs.alq_normalized(5, 16), 5, levels.powers(0.5, 5, zero_level=False), LINF),
    "amq_3": Row(codecs.amq(3, 7, zero_level=True, norm=L2), 3, levels.powers(0.5, 3), L2),
    "error_feedback_of_sign": Row(codecs.error_feedback(codecs.sign(16)), 1),
    "error_feedback_of_qsgd": Row(codecs.error_feedback(codecs.qsgd(3, 16), relative_variance=2.0), 3),
}
RANDOM = [name for name, row in ROWS.items() if row.values is not None]
PACKED = [name for name, row in ROWS.items() if row.bits < 16]


def heavy_tailed(dimension=DIMENSION):
    return np.random.default_rng(7).standard_t(3, dimension).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def there_and_back(codec, x, key=None):
    state = codec.init(x.size)
    wire, _ = codec.encode(jax.random.key(0) if key is None else key, x, state)
    return codec.decode(wire, state[0])[: x.size]


@functools.cache
def samples(name):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    one = functools.partial(there_and_back, ROWS[name].codec, heavy_tailed())
    return np.asarray(jax.vmap(one)(keys), np.float64)


def variance(name):
    row = ROWS[name]
    with jax.enable_x64(True):
        x = jnp.asarray(heavy_tailed(), jnp.float64)
        return np.asarray(codecs.rounding_variance(x, row.values, row.codec.bucket_size, row.norm))


def deviations(found, expected, exact):
    """How far means are from what they should be, in standard errors; what never varies may be off by rounding."""
    return (np.abs(found.mean(0) - expected) - 1e-6 * np.abs(expected)) / np.sqrt(exact / len(found) + 1e-30)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dimension", [1, 15, 16, 53])
def test_message_is_as_small_as_stated_and_cut_in_buckets(name, dimension):
    codec, bits, *_ = ROWS[name]
    state, x = codec.init(dimension), jax.ShapeDtypeStruct((dimension,), jnp.float32)
    wire, own = jax.eval_shape(codec.encode, jax.random.key(0), x, state)
    decoded = jax.eval_shape(codec.decode, wire, state[0])
    buckets, size = -(-dimension // codec.bucket_size), codec.bucket_size
    scales = 32 if name in PACKED else 0
    assert wire_bits(wire) == buckets * (8 * packed_size(size, bits) + scales)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(wire)} == {buckets}
    assert (decoded.dtype, decoded.shape) == (jnp.float32, (buckets * size,))
    assert jax.tree.structure(own) == jax.tree.structure(state[1])


@pytest.mark.parametrize("name", ROWS)
def test_jit_and_vmap_send_the_same_codes(name):
    codec = ROWS[name].codec
    rows = np.random.default_rng(0).normal(size=(2, 40)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0))
    mapped, _ = jax.jit(jax.vmap(codec.encode, in_axes=(0, 0, None)))(keys, rows, codec.init(40))
    eager, _ = codec.encode(keys[1], jnp.asarray(rows[1]), codec.init(40))
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(mapped), strict=True):
        np.testing.assert_allclose(one, other[1], rtol=1e-6)
    assert any(not np.array_equal(leaf[0], leaf[1]) for leaf in jax.tree.leaves(jax.tree.map(np.asarray, mapped)))


@pytest.mark.parametrize("name", ROWS)
def test_one_trace_serves_all_calls(name):
    codec, traces = ROWS[name].codec, []

    @jax.jit
    def encode(key, x, state):
        traces.append(0)
        return codec.encode(key, x, state)

    state = codec.init(40)
    for seed in range(3):
        _, own = encode(jax.random.key(seed), jnp.full(40, 1.0 + seed), state)
        state = (state[0], own)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ROWS)
def test_a_range_of_buckets_is_a_range_of_the_vector(name):
    codec = ROWS[name].codec
    state, size = codec.init(DIMENSION), codec.bucket_size
    decode = jax.jit(codec.decode)
    wire, _ = jax.jit(codec.encode)(jax.random.key(0), jnp.asarray(heavy_tailed()), state)
    whole = np.asarray(decode(wire, state[0]))
    part = decode(jax.tree.map(lambda leaf: leaf[2:5], wire), state[0])
    np.testing.assert_array_equal(part, whole[2 * size : 5 * size])
    assert not np.array_equal(part, whole[size : 4 * size])
    padded = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 3)] + [(0, 0)] * (leaf.ndim - 1)), wire)
    longer = np.asarray(decode(padded, state[0]))
    np.testing.assert_array_equal(longer[: whole.size], whole)
    assert np.isfinite(longer).all()


@pytest.mark.parametrize("name", RANDOM)
def test_codes_of_a_bucket_do_not_depend_on_the_buckets_after_it(name):
    codec = ROWS[name].codec
    x = heavy_tailed(4 * codec.bucket_size)
    long = there_and_back(codec, x)
    short = there_and_back(codec, x[: 2 * codec.bucket_size])
    np.testing.assert_allclose(short, long[: short.size], rtol=1e-6)
    other = there_and_back(codec, x[: 2 * codec.bucket_size], jax.random.key(1))
    assert not np.allclose(other, short)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_bucket_and_no_other(name, bad):
    codec = ROWS[name].codec
    x = np.ones(40, np.float32)
    x[17] = bad
    found = np.isfinite(there_and_back(codec, x))
    bucket = np.arange(40) // codec.bucket_size == 17 // codec.bucket_size
    if name != "ternary_clipped":
        np.testing.assert_array_equal(found, ~bucket)
    assert not found[bucket].any()


@pytest.mark.parametrize("name", ROWS)
def test_zeros_come_back_as_zeros(name):
    np.testing.assert_array_equal(there_and_back(ROWS[name].codec, np.zeros(40, np.float32)), 0)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_scales_neither_vanish_nor_overflow(name, scale):
    codec, x = ROWS[name].codec, heavy_tailed(40)
    plain, scaled = there_and_back(codec, x), there_and_back(codec, x * np.float32(scale))
    np.testing.assert_allclose(scaled / scale, plain, rtol=1e-5)


@pytest.mark.parametrize("name", RANDOM)
def test_unbiased_within_four_standard_errors(name):
    assert deviations(samples(name), heavy_tailed(), variance(name)).max() < 4


@pytest.mark.parametrize("name", RANDOM)
def test_variance_is_the_formulas_and_below_the_theorems(name):
    codec, _, values, norm = ROWS[name]
    x = np.asarray(heavy_tailed(), np.float64)
    exact = variance(name).sum()
    errors = ((samples(name) - x) ** 2).sum(1)
    assert abs(errors.mean() / exact - 1) < 0.02
    assert exact <= codecs.variance_bound(values, codec.bucket_size) * (x**2).sum()
    # The law can fail: neighboring widths have other variances.
    other = uniform(4) if len(values) < 8 else uniform(2)
    wrong = codecs.rounding_variance(jnp.asarray(heavy_tailed()), other, codec.bucket_size, norm).sum()
    assert abs(errors.mean() / float(wrong) - 1) > 0.02


def test_rounding_to_the_nearest_or_with_one_draw_would_be_caught(monkeypatch):
    def half(key, buckets, columns, first):
        return [jnp.full((buckets, columns), 0.5)] * 8

    monkeypatch.setattr(quantization, "uniform_lanes", half)
    codec = codecs.qsgd(3, 16)
    found = np.asarray(there_and_back(codec, heavy_tailed()), np.float64)
    assert deviations(np.tile(found, (DRAWS, 1)), heavy_tailed(), variance("qsgd_3")).max() > 4


@pytest.mark.parametrize("name", ["sign", "ternary_clipped", "bfloat16"])
def test_biased_codecs_are_known_to_be(name):
    off = np.abs(samples(name).mean(0) - heavy_tailed())
    assert off.max() > (1e-3 if name == "bfloat16" else 0.1)


@pytest.mark.parametrize("name", [*RANDOM, "sign", "error_feedback_of_sign"])
def test_half_precision_vectors_travel_like_their_float32(name):
    codec = ROWS[name].codec
    x = jnp.asarray(heavy_tailed(40)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(there_and_back(codec, x), there_and_back(codec, x.astype(jnp.float32)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: codecs.qsgd(bits=1), "bits must lie in 2 to 8, got 1"),
        (lambda: codecs.qsgd_inf(bits=9), "bits must lie in 2 to 8, got 9"),
        (lambda: codecs.nuqsgd(bits=1), "bits must lie in 2 to 8, got 1"),
        (lambda: codecs.qsgd(bucket_size=0), "bucket_size must be positive, got 0"),
        (lambda: codecs.nuqsgd(bucket_size=0), "bucket_size must be positive, got 0"),
        (lambda: codecs.sign(bucket_size=-1), "bucket_size must be positive, got -1"),
        (lambda: codecs.ternary(bucket_size=0), "bucket_size must be positive, got 0"),
        (lambda: codecs.ternary(clip=0.0), "clip must be positive, got 0.0"),
        (lambda: codecs.nuqsgd(norm=geometry.l1()), r"norm must be geometry.l2\(\) or geometry.linf\(\), got l1"),
        (lambda: codecs.error_feedback(codecs.sign(), -1.0), "relative_variance must not be negative, got -1.0"),
        (lambda: codecs.alq(bits=9), "bits must lie in 2 to 8, got 9"),
        (lambda: codecs.amq(bucket_size=0), "bucket_size must be positive, got 0"),
        (lambda: codecs.alq(norm=geometry.l1()), r"norm must be geometry.l2\(\) or geometry.linf\(\), got l1"),
        (
            lambda: codecs.alq(statistics=codecs.Statistics(codecs.steps(), samples=0)),
            "samples, components and block_size must be positive, got 0, 64, 32",
        ),
        (lambda: codecs.steps(period=0), "period must be positive, got 0"),
        (lambda: codecs.rounding_variance(jnp.ones(2), jnp.ones(2), 0), "bucket_size must be positive, got 0"),
    ],
)
def test_bad_arguments_are_refused(make, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        make()
