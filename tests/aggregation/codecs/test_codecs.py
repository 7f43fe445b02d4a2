"""Laws that every codec keeps; a new codec is a new row."""

import functools
from collections import Counter
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
KEY = jax.random.key(0)


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


TRACED = Counter()


@functools.cache
def compiled(name):
    """One compilation of each codec and length for all tests of the table; it counts its traces."""
    codec = ROWS[name].codec

    def encode(key, x, state):
        TRACED[name, x.shape, x.dtype.name] += 1
        return codec.encode(key, x, state)

    return jax.jit(encode), jax.jit(codec.decode)


def there_and_back(name, x, key=KEY):
    encode, decode = compiled(name)
    state = ROWS[name].codec.init(x.size)
    wire, _ = encode(key, jnp.asarray(x), state)
    return np.asarray(decode(wire, state[0]))[: x.size]


@functools.cache
def mapped(name):
    """Two vectors by two keys, then one vector by many keys: their messages, and what is read from them."""
    codec = ROWS[name].codec
    state = codec.init(DIMENSION)

    def one(key, x):
        wire, _ = codec.encode(key, x, state)
        return wire, codec.decode(wire, state[0])[:DIMENSION]

    rows = np.tile(heavy_tailed(), (DRAWS + 1, 1))
    rows[0] = rows[0, ::-1]
    return jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(KEY, DRAWS + 1), rows))


def samples(name):
    return mapped(name)[1][1:].astype(np.float64)


@functools.cache
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
    codec, (wires, _) = ROWS[name].codec, mapped(name)
    key, x, state = jax.random.split(KEY, DRAWS + 1)[1], jnp.asarray(heavy_tailed()), codec.init(DIMENSION)
    for encode in (codec.encode, compiled(name)[0]):
        wire, _ = encode(key, x, state)
        for one, other in zip(jax.tree.leaves(wire), jax.tree.leaves(wires), strict=True):
            np.testing.assert_allclose(one, other[1], rtol=1e-6)
    assert any(not np.array_equal(leaf[0], leaf[1]) for leaf in jax.tree.leaves(wires))


@pytest.mark.parametrize("name", ROWS)
def test_one_trace_serves_all_calls(name):
    encode, state = compiled(name)[0], ROWS[name].codec.init(DIMENSION)
    for seed in range(3):
        _, own = encode(jax.random.key(seed), jnp.full(DIMENSION, 1.0 + seed, jnp.float32), state)
        state = (state[0], own)
    assert TRACED[name, (DIMENSION,), "float32"] == 1


@pytest.mark.parametrize("name", ROWS)
def test_a_range_of_buckets_is_a_range_of_the_vector(name):
    codec, (encode, decode) = ROWS[name].codec, compiled(name)
    state, size = codec.init(DIMENSION), codec.bucket_size
    wire, _ = encode(KEY, jnp.asarray(heavy_tailed()), state)
    whole = np.asarray(decode(wire, state[0]))
    wire = jax.device_get(wire)
    part = decode(jax.tree.map(lambda leaf: leaf[2:5], wire), state[0])
    np.testing.assert_array_equal(part, whole[2 * size : 5 * size])
    assert not np.array_equal(part, whole[size : 4 * size])
    padded = jax.tree.map(lambda leaf: np.pad(leaf, [(0, 3)] + [(0, 0)] * (leaf.ndim - 1)), wire)
    longer = np.asarray(decode(padded, state[0]))
    np.testing.assert_array_equal(longer[: whole.size], whole)
    assert np.isfinite(longer).all()


@pytest.mark.parametrize("name", RANDOM)
def test_codes_of_a_bucket_do_not_depend_on_the_buckets_after_it(name):
    x, size = heavy_tailed(), 2 * ROWS[name].codec.bucket_size
    long, short = there_and_back(name, x), there_and_back(name, x[:size])
    np.testing.assert_allclose(short, long[:size], rtol=1e-6)
    other = there_and_back(name, x[:size], jax.random.key(1))
    assert not np.allclose(other, short)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_bucket_and_no_other(name, bad):
    x, size = np.ones(DIMENSION, np.float32), ROWS[name].codec.bucket_size
    x[17] = bad
    found = np.isfinite(there_and_back(name, x))
    bucket = np.arange(DIMENSION) // size == 17 // size
    if name != "ternary_clipped":
        np.testing.assert_array_equal(found, ~bucket)
    assert not found[bucket].any()


@pytest.mark.parametrize("codec", [codecs.qsgd_inf(4), codecs.nuqsgd(3), codecs.sign()])
def test_a_nan_anywhere_in_a_long_bucket_spoils_it_when_compiled(codec):
    """A vectorized maximum of floats may drop it."""
    size, key = codec.bucket_size + 100, jax.random.key(0)

    @jax.jit
    def finite(place):
        x = jnp.asarray(heavy_tailed(size)).at[place].set(jnp.nan)
        wire, _ = codec.encode(key, x, codec.init(size))
        return jnp.isfinite(codec.decode(wire, ())[:size])

    for place in (0, 1, 130, codec.bucket_size - 1):
        found = finite(place)
        assert not found[: codec.bucket_size].any()
        assert found[codec.bucket_size :].all()


@pytest.mark.parametrize("name", ROWS)
def test_zeros_come_back_as_zeros(name):
    np.testing.assert_array_equal(there_and_back(name, np.zeros(DIMENSION, np.float32)), 0)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_scales_neither_vanish_nor_overflow(name, scale):
    x = heavy_tailed()
    plain, scaled = there_and_back(name, x), there_and_back(name, x * np.float32(scale))
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
    state = codec.init(DIMENSION)
    wire, _ = jax.jit(codec.encode)(KEY, heavy_tailed(), state)
    found = np.asarray(codec.decode(wire, state[0])[:DIMENSION], np.float64)
    assert deviations(np.tile(found, (DRAWS, 1)), heavy_tailed(), variance("qsgd_3")).max() > 4


@pytest.mark.parametrize("name", ["sign", "ternary_clipped", "bfloat16"])
def test_biased_codecs_are_known_to_be(name):
    off = np.abs(samples(name).mean(0) - heavy_tailed())
    assert off.max() > (1e-3 if name == "bfloat16" else 0.1)


@pytest.mark.parametrize("name", [*RANDOM, "sign", "error_feedback_of_sign"])
def test_half_precision_vectors_travel_like_their_float32(name):
    x = jnp.asarray(heavy_tailed()).astype(jnp.bfloat16)
    np.testing.assert_array_equal(there_and_back(name, x), there_and_back(name, x.astype(jnp.float32)))


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
