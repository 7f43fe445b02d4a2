"""Laws that every codec keeps; a new codec is a new row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import codecs, wire_bits

ROWS = {
    "float32": (codecs.float32(), lambda d: 32 * d),
    "qsgd_2": (codecs.qsgd(bits=2, bucket_size=16), lambda d: 8 * -(-d * 2 // 8) + 32 * -(-d // 16)),
    "qsgd_3": (codecs.qsgd(bits=3, bucket_size=16), lambda d: 8 * -(-d * 3 // 8) + 32 * -(-d // 16)),
    "qsgd_8": (codecs.qsgd(bits=8, bucket_size=7), lambda d: 8 * d + 32 * -(-d // 7)),
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
    assert dimension <= decoded.size < dimension + 8
    assert jax.tree.structure(own) == jax.tree.structure(state[1])


@pytest.mark.parametrize("name", ROWS)
def test_jit_sends_the_same_codes_and_signs_come_back(name):
    codec, _ = ROWS[name]
    x = np.random.default_rng(0).normal(size=40).astype(np.float32)
    eager, _ = codec.encode(jax.random.key(0), x, codec.init(40))
    jitted, _ = jax.jit(codec.encode)(jax.random.key(0), x, codec.init(40))
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    decoded = np.asarray(there_and_back(codec, x))
    assert np.all(decoded * x >= 0)
    assert not np.all(decoded * -x >= 0)


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
