"""Packing of codes into bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import pack, unpack, wire_bits


def reference(codes: np.ndarray, bits: int) -> np.ndarray:
    stream = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little").reshape(-1)
    return np.packbits(stream, bitorder="little")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [8, 37])
def test_round_trip_of_every_width_and_ragged_count(bits, count):
    codes = np.random.default_rng(bits).integers(0, 2**bits, count).astype(np.uint8)
    packed = jax.jit(pack, static_argnums=1)(jnp.asarray(codes), bits)
    assert packed.dtype == jnp.uint8
    assert packed.shape == (-(-count * bits // 8),)
    np.testing.assert_array_equal(packed, reference(codes, bits))
    unpacked = jax.jit(unpack, static_argnums=(1, 2))(packed, bits, count)
    np.testing.assert_array_equal(unpacked, codes)


def test_another_width_reads_other_codes():
    codes = jnp.arange(8, dtype=jnp.uint8)
    packed = pack(codes, 3)
    assert not np.array_equal(unpack(packed, 4, 6), codes[:6])


def test_bad_widths_and_counts_are_refused():
    with pytest.raises(ValueError, match="bits must lie in 1 to 8, got 9"):
        pack(jnp.zeros(3, jnp.uint8), 9)
    with pytest.raises(ValueError, match="bits must lie in 1 to 8, got 0"):
        unpack(jnp.zeros(3, jnp.uint8), 0, 1)
    with pytest.raises(ValueError, match="count must be at most 8 for 3 bytes, got 9"):
        unpack(jnp.zeros(3, jnp.uint8), 3, 9)


def test_wire_bits_counts_dtypes():
    wire = (jnp.zeros(3, jnp.uint8), jax.ShapeDtypeStruct((2, 2), jnp.bfloat16), jnp.float32(0))
    assert wire_bits(wire) == 24 + 64 + 32
