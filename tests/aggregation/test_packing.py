"""Packing of codes into bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import pack, packed_size, unpack, wire_bits


def reference(codes: np.ndarray, bits: int) -> np.ndarray:
    """Words of whole bytes as Python's own integers of any length."""
    lanes = next(g for g in (1, 2, 4, 8) if g * bits % 8 == 0)
    length = -(-len(codes) // lanes)
    rows = np.zeros((lanes, length), int)
    rows.reshape(-1)[: len(codes)] = codes
    words = [sum(int(code) << (bits * place) for place, code in enumerate(column)) for column in rows.T]
    size = lanes * bits // 8
    return np.array([list(word.to_bytes(size, "little")) for word in words], np.uint8).T.reshape(-1)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [8, 37])
def test_round_trip_of_every_width_and_ragged_count(bits, count):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (2, count)).astype(np.uint8)
    packed = jax.jit(pack, static_argnums=1)(jnp.asarray(codes), bits)
    assert packed.dtype == jnp.uint8
    assert packed.shape == (2, packed_size(count, bits))
    assert packed_size(count, bits) * 8 < count * bits + 8 * bits
    for row, plain in zip(packed, codes, strict=True):
        np.testing.assert_array_equal(row, reference(plain, bits))
    unpacked = jax.jit(unpack, static_argnums=(1, 2))(packed, bits, count)
    np.testing.assert_array_equal(unpacked, codes)


def test_as_many_bytes_as_the_bits_fill():
    assert [packed_size(64, bits) for bits in range(1, 9)] == [8 * bits for bits in range(1, 9)]


def test_another_width_reads_other_codes():
    codes = jnp.arange(8, dtype=jnp.uint8)
    packed = pack(codes, 3)
    assert not np.array_equal(unpack(packed[:2], 2, 8), codes)


def test_bad_widths_and_counts_are_refused():
    with pytest.raises(ValueError, match="bits must lie in 1 to 8, got 9"):
        pack(jnp.zeros(3, jnp.uint8), 9)
    with pytest.raises(ValueError, match="bits must lie in 1 to 8, got 0"):
        unpack(jnp.zeros(3, jnp.uint8), 0, 1)
    with pytest.raises(ValueError, match="packed must have rows of 6 bytes for 9 codes of 3 bits, got 3"):
        unpack(jnp.zeros(3, jnp.uint8), 3, 9)


def test_wire_bits_counts_dtypes():
    wire = (jnp.zeros(3, jnp.uint8), jax.ShapeDtypeStruct((2, 2), jnp.bfloat16), jnp.float32(0))
    assert wire_bits(wire) == 24 + 64 + 32
