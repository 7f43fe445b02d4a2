r"""How short codes could be: entropy, Huffman's code and Elias's, so that schemes compare at their measured rate.

.. math:: H = -\sum_j p_j \log_2 p_j \le \sum_j p_j \, \mathrm{len}_j < H + 1

A width of b bits is not a rate: levels that are never used cost nothing once codes are entropy-coded.
"""

import heapq

import jax.numpy as jnp
import numpy as np

from jaxrobust.typing import Array


def symbol_counts(codes: Array, levels: int) -> Array:
    """How often each code occurs.

    Args:
      codes: integers below levels, of any shape.
      levels: number of codes.

    Returns:
      `[levels]` int32.

    Example:
      >>> import jax.numpy as jnp
      >>> symbol_counts(jnp.array([0, 2, 2], jnp.uint8), 3).tolist()
      [1, 0, 2]
    """
    return jnp.bincount(codes.reshape(-1).astype(jnp.int32), length=levels)


def entropy(counts: np.ndarray | Array) -> float:
    r"""Bits that a symbol needs at least, on average.

    .. math:: H = -\sum_j p_j \log_2 p_j

    Args:
      counts: `[symbols]`, how often each occurs.

    Returns:
      H; 0 for no symbols at all.

    Example:
      >>> entropy([1, 0, 1])
      1.0
    """
    weights = np.asarray(counts, np.float64)
    p = weights[weights > 0] / max(weights.sum(), 1.0)
    return float(-np.sum(p * np.log2(p))) + 0.0


def huffman_lengths(counts: np.ndarray | Array) -> np.ndarray:
    """Lengths of the shortest code in which no word begins another.

    Args:
      counts: `[symbols]`, how often each occurs.

    Returns:
      `[symbols]` int64, bits of each symbol's word; 0 for those that do not occur, 1 for one that occurs alone.

    Example:
      >>> huffman_lengths([1, 5, 0, 2]).tolist()
      [2, 1, 0, 2]

    Reference: Huffman, "A Method for the Construction of Minimum-Redundancy Codes",
    https://doi.org/10.1109/JRPROC.1952.273898, 1952.
    """
    weights = np.asarray(counts)
    lengths = np.zeros(weights.size, np.int64)
    heap = [(int(weight), symbol, [symbol]) for symbol, weight in enumerate(weights.tolist()) if weight > 0]
    if len(heap) == 1:
        lengths[heap[0][2]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (light, order, some), (heavy, _, others) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[some + others] += 1
        heapq.heappush(heap, (light + heavy, order, some + others))
    return lengths


def huffman_bits(counts: np.ndarray | Array) -> float:
    """Bits of a symbol in Huffman's code, on average.

    Args:
      counts: `[symbols]`, how often each occurs.

    Returns:
      Between the entropy and one bit more; 0 for no symbols at all.

    Example:
      >>> huffman_bits([1, 5, 0, 2])
      1.375
    """
    weights = np.asarray(counts, np.float64)
    return float(np.sum(weights * huffman_lengths(counts)) / max(weights.sum(), 1.0))


def elias_omega_length(number: int) -> int:
    r"""Bits of a positive number in Elias's recursive code.

    .. math:: L(1) = 1, \quad L(n) = 1 + \sum_k b(n_k), \quad n_0 = n, \; n_{k+1} = b(n_k) - 1 \text{ while } n_k > 1

    where b(n) is the number of binary digits of n.

    Args:
      number: n, at least 1.

    Returns:
      L(n).

    Raises:
      ValueError: for a number below 1.

    Example:
      >>> [elias_omega_length(n) for n in (1, 2, 4, 8, 16)]
      [1, 3, 6, 7, 11]

    Reference: Elias, "Universal Codeword Sets and Representations of the Integers",
    https://doi.org/10.1109/TIT.1975.1055349, 1975.
    """
    if number < 1:
        raise ValueError(f"number must be at least 1, got {number}")
    total, rest = 1, number
    while rest > 1:
        total += rest.bit_length()
        rest = rest.bit_length() - 1
    return total
