"""Golden numbers of quantizers, codes and code lengths."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import codecs
from jaxrobust.aggregation.codecs import levels
from jaxrobust.aggregation.codecs.quantization import normalized, norms
from jaxrobust.aggregation.codecs.ternary import clipped


@pytest.fixture
def golden(shared):
    folder = shared / "golden" / "quantisation"
    if not folder.exists():
        pytest.skip("no golden numbers")
    return lambda name: np.load(folder / f"{name}.npz")


def in_buckets(x, size, fill=0.0):
    return np.pad(x, (0, -x.size % size), constant_values=fill).reshape(-1, size)


@pytest.mark.parametrize("bits", range(2, 9))
def test_static_levels(golden, bits):
    numbers = golden("static_levels")
    np.testing.assert_allclose(levels.uniform(bits, zero_level=False).values, numbers[f"uniform_{bits}"], atol=1e-7)
    for ratio in (0.5, 0.3, 0.9):
        found = levels.powers(ratio, bits, zero_level=False)
        np.testing.assert_allclose(found, numbers[f"exp_{bits}_{ratio}"], rtol=2e-7, atol=1e-37)
    np.testing.assert_array_equal(levels.uniform(2).values, numbers["ternary"])
    assert not np.allclose(levels.uniform(bits).values[0:3], numbers[f"uniform_{bits}"][1:4])


def test_elias_lengths(golden):
    expected = golden("static_levels")["elias_omega_len_1_to_256"]
    assert [codecs.elias_omega_length(number) for number in range(1, 257)] == expected.tolist()
    with pytest.raises(ValueError, match=r"^number must be at least 1, got 0$"):
        codecs.elias_omega_length(0)


@pytest.mark.parametrize("case", "ABC")
@pytest.mark.parametrize("name", ["uni", "exp", "alq", "alq_nb", "tern"])
def test_quantizer_with_given_noise(golden, case, name):
    numbers = golden(f"case_{case}")
    size, values = int(numbers["meta_bucket"]), numbers[f"q_l2_{name}_levels"]
    with jax.enable_x64(True):
        buckets = jnp.asarray(in_buckets(numbers["q_x"].astype(np.float64), size))
        scale = norms(buckets, 2)
        np.testing.assert_allclose(scale, numbers["q_norm2"], rtol=1e-6)
        np.testing.assert_allclose(norms(buckets, np.inf), numbers["q_norminf"], rtol=1e-6)
        noise = in_buckets(numbers["q_u"], size, 0.5)
        expected = numbers[f"q_l2_{name}_out"]
        agree = {}
        for direction, u in (("same", noise), ("mirrored", 1 - noise)):
            codes = levels.arbitrary(jnp.asarray(values)).rounding(normalized(buckets, scale), jnp.asarray(u))
            out = (np.asarray(scale)[:, None] * values[np.asarray(codes)]).reshape(-1)[: expected.size]
            agree[direction] = np.mean(np.isclose(out, expected, rtol=1e-5))
    assert max(agree.values()) > 0.9995
    assert min(agree.values()) < 0.99


@pytest.mark.parametrize("case", "ABC")
@pytest.mark.parametrize(
    ("norm", "name"), [("l2", "uni"), ("l2", "exp"), ("l2", "alq"), ("l2", "tern"), ("linf", "uni"), ("linf", "tern")]
)
def test_codes_of_the_kernel(golden, case, norm, name):
    numbers = golden(f"case_{case}")
    size, values = int(numbers["meta_bucket"]), numbers[f"q_l2_{name}_levels"].astype(np.float32)
    x = jnp.asarray(in_buckets(numbers["q_x"], size))
    scale = norms(x, 2 if norm == "l2" else np.inf)
    # The kernel's draws are whole numbers up to a million, counted from the upper level.
    u = jnp.asarray(in_buckets(1 - numbers["q_r"] / 1e6, size).astype(np.float32))
    expected = numbers[f"q_kernel_{norm}_{name}_code"]
    found = {"any": levels.arbitrary(jnp.asarray(values))}
    if name == "uni":
        found["uniform"] = levels.uniform(int(numbers["meta_bits"]), zero_level=False)
    if name == "tern":
        found["uniform"] = levels.uniform(2)
    for level in found.values():
        codes = np.asarray(level.rounding(normalized(x, scale), u)).reshape(-1)[: expected.size]
        assert np.mean(codes == expected) > 0.9995
    shifted = np.asarray(found["any"].rounding(normalized(x, scale), 1 - u)).reshape(-1)[: expected.size]
    assert np.mean(shifted == expected) < 0.99


@pytest.mark.parametrize("case", "ABC")
@pytest.mark.parametrize("name", ["uni", "exp", "alq", "alq_nb", "tern"])
def test_entropy_and_huffman_lengths(golden, case, name):
    numbers = golden(f"case_{case}")
    counts = numbers[f"huff_l2_{name}_counts"]
    assert codecs.huffman_bits(counts) == pytest.approx(float(numbers[f"huff_l2_{name}_avg_bits"]))
    assert codecs.entropy(counts) == pytest.approx(float(numbers[f"huff_l2_{name}_entropy"]))
    lengths = codecs.huffman_lengths(counts)
    assert sum(2.0 ** -lengths[counts > 0]) == 1
    np.testing.assert_array_equal(lengths == 0, counts == 0)
    codes = np.repeat(np.arange(counts.size), counts).astype(np.uint8)
    np.testing.assert_array_equal(codecs.symbol_counts(jnp.asarray(codes), counts.size), counts)


def test_code_lengths_by_hand():
    assert codecs.huffman_lengths([0, 3, 0]).tolist() == [0, 1, 0]
    assert codecs.huffman_bits([0, 0]) == codecs.entropy([0, 0]) == 0
    counts = np.random.default_rng(0).integers(1, 100, 16)
    assert codecs.entropy(counts) <= codecs.huffman_bits(counts) < codecs.entropy(counts) + 1
    total, heap = 0, counts.tolist()
    heapq.heapify(heap)
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    assert codecs.huffman_bits(counts) == pytest.approx(total / counts.sum())


@pytest.mark.parametrize("case", "ABC")
def test_clipping(golden, case):
    numbers = golden(f"case_{case}")
    found = clipped(jnp.asarray(numbers["clip25_in"]), 2.5)
    np.testing.assert_allclose(found, numbers["clip25_out"], rtol=1e-5)
    assert not np.allclose(clipped(jnp.asarray(numbers["clip25_in"]), 2.4), numbers["clip25_out"])
