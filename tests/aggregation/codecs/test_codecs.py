"""Laws that every codec keeps; a new codec is a new row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import codecs, wire_bits


def packed(bits, bucket_size):
    """Bits of a message of d coordinates: codes in whole bytes and a float32 scale for each bucket."""
    return lambda d: -(-d // bucket_size) * (8 * -(-bucket_size * bits // 8) + 32)


ROWS = {
    "float32": (codecs.float32(), lambda d: 32 * d),
    "qsgd_2": (codecs.qsgd(bits=2, bucket_size=16), packed(2, 16)),
    "qsgd_3": (codecs.qsgd(bits=3, bucket_size=16), packed(3, 16)),
    "qsgd_8": (codecs.qsgd(bits=8, bucket_size=7), packed(8, 7)),
    "qsgd_inf_5": (codecs.qsgd_inf(bits=5, bucket_size=7), packed(5, 7)),
    "qsgd_3_without_zero": (codecs.qsgd(bits=3, bucket_size=16, zero_level=False), packed(3, 16)),
}


@functools.partial(jax.jit, static_argnums=0)
def there_and_back(codec, x):
    state = codec.init(x.size)
    wire, _ = codec.encode(jax.random.key(0), x, state)
    return codec.decode(wire, state[0])[: x.size]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dimension", [1, 15, 16, 53])
def test_message_is_as_small_as_stated_and_long_enough(name, dimension):
    codec, bits = ROWS[name]
    state, x = codec.init(dimension), jax.ShapeDtypeStruct((dimension,), jnp.float32)
    wire, own = jax.eval_shape(codec.encode, jax.random.key(0), x, state)
    decoded = jax.eval_shape(codec.decode, wire, state[0])
    assert wire_bits(wire) == bits(dimension)
    assert decoded.dtype == jnp.float32
    assert decoded.size == -(-dimension // codec.bucket_size) * codec.bucket_size
    assert {leaf.shape[0] for leaf in jax.tree.leaves(wire)} == {-(-dimension // codec.bucket_size)}
    assert jax.tree.structure(own) == jax.tree.structure(state[1])


@pytest.mark.parametrize("name", ROWS)
def test_jit_sends_the_same_codes(name):
    codec, _ = ROWS[name]
    x = np.random.default_rng(0).normal(size=40).astype(np.float32)
    eager, _ = codec.encode(jax.random.key(0), x, codec.init(40))
    jitted, _ = jax.jit(codec.encode)(jax.random.key(0), x, codec.init(40))
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_what_is_not_finite_stays_so(name):
    codec, _ = ROWS[name]
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones(40, np.float32)
        x[3] = bad
        assert not np.isfinite(there_and_back(codec, x)).all()


@pytest.mark.parametrize("name", ROWS)
def test_zeros_come_back_as_zeros(name):
    codec, _ = ROWS[name]
    np.testing.assert_array_equal(there_and_back(codec, np.zeros(40, np.float32)), 0)
