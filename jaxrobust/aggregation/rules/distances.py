r"""What a rule may ask of whole vectors: how far they lie from each other.

Columns may be split over an axis; each function sums what it found in its own columns once over it, n x n numbers, so
that the result is equal everywhere, to the bit.

.. math:: G_{ij} = \langle x_i - c, x_j - c \rangle, \qquad \|x_i - x_j\|_2^2 = G_{ii} + G_{jj} - 2 G_{ij}

with c the median of each coordinate. The center cancels in every distance, but not in rounding: far from the origin
nothing would be left of a difference in single precision, and a mean as the center could be carried off by one row.
"""

import jax
import jax.numpy as jnp

from jaxrobust.aggregation import axes
from jaxrobust.aggregation.rules.sorting import by_itself, middle, wide
from jaxrobust.typing import Array, AxisName


def gram(columns: Array, axis: AxisName | None = None, alive: Array | None = None) -> Array:
    r"""Inner products of all pairs of vectors, about the median of each coordinate.

    .. math:: G_{ij} = \langle x_i - c, x_j - c \rangle

    An entry is exact to a rounding error of :math:`\|x_i - c\| \|x_j - c\|`, so what is true of rows close together
    stays true whatever others send. Deviations of more than sqrt(M / 8d), with M the largest number and d the
    dimension (7e15 for a million coordinates in float32), count as that large: nothing overflows.

    Args:
      columns: `[n, m]`, a slice of every worker's vector.
      axis: the axis over which the vectors are split, None where they are whole.
      alive: `[n]`; rows and columns of G are 0 where a worker is not alive. None for all.

    Returns:
      `[n, n]`, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> gram(jnp.array([[0.0, 5.0], [2.0, 5.0], [3.0, 5.0]])).tolist()
      [[4.0, 0.0, -2.0], [0.0, 0.0, 0.0], [-2.0, 0.0, 1.0]]
    """
    alive = jnp.ones(columns.shape[0], bool) if alive is None else alive
    centered, _ = center(columns, axis, alive)
    return inner_products(centered, axis)


def center(columns: Array, axis: AxisName | None, alive: Array) -> tuple[Array, Array]:
    """Live rows less the median of each coordinate, cut where a square could overflow; dead rows are 0.

    Args:
      columns: `[n, m]`.
      axis: the axis over which the vectors are split, None where they are whole.
      alive: `[n]`.

    Returns:
      `(centered [n, m], center [m])`, float32 or wider.
    """
    rows = wide(columns)
    low, high = by_itself(middle, alive, rows, alive)
    middles = 0.5 * low + 0.5 * high
    reach = largest_square_root(rows, axis)
    return jnp.where(alive[:, None], jnp.clip(rows - middles, -reach, reach), 0.0), middles


def inner_products(rows: Array, axis: AxisName | None, others: Array | None = None) -> Array:
    """Inner products `[n, k]` of rows `[n, m]` and others `[k, m]` (the rows again), exact, summed over the axis."""
    others = rows if others is None else others
    products = jax.lax.dot_general(rows, others, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
    return summed(products, axis)


def gram_with(columns: Array, other: Array, axis: AxisName | None, alive: Array) -> Array:
    """The Gram matrix of the workers' vectors and of one more, which comes last: `[n + 1, n + 1]`.

    Args:
      columns: `[n, m]`, a slice of every worker's vector.
      other: `[m]`, the same slice of one vector more.
      axis: the axis over which the vectors are split, None where they are whole.
      alive: `[n]`; rows and columns of the dead are 0.

    Returns:
      `[n + 1, n + 1]`, about the median of the workers' coordinates.
    """
    rows, middles = center(columns, axis, alive)
    reach = largest_square_root(rows, axis)
    last = jnp.clip(other.astype(rows.dtype) - middles, -reach, reach)
    products = inner_products(rows, None)
    cross = inner_products(rows, None, last[None])
    corner = inner_products(last[None], None)
    return summed(jnp.block([[products, cross], [cross.T, corner]]), axis)


def squared_distances_to(columns: Array, other: Array, axis: AxisName | None, alive: Array) -> Array:
    """Squared Euclidean distances `[n]` of the workers' vectors to one more, in one pass over them; 0 for the dead.

    Args:
      columns: `[n, m]`, a slice of every worker's vector.
      other: `[m]`, the same slice of the other vector; finite.
      axis: the axis over which the vectors are split, None where they are whole.
      alive: `[n]`.

    Returns:
      `[n]`, from differences cut as in `gram`.
    """
    reach = largest_square_root(columns, axis)
    rows = wide(columns)
    apart = jnp.where(alive[:, None], jnp.clip(rows - other.astype(rows.dtype), -reach, reach), 0.0)
    return summed(jnp.sum(apart * apart, axis=1), axis)


def norms(columns: Array, axis: AxisName | None, alive: Array) -> Array:
    """Euclidean norms `[n]` of the vectors themselves, about no center, cut as in `gram`; 0 for the dead."""
    reach = largest_square_root(columns, axis)
    rows = jnp.where(alive[:, None], jnp.clip(wide(columns), -reach, reach), 0.0)
    return jnp.sqrt(summed(jnp.sum(rows * rows, axis=1), axis))


def largest_square_root(columns: Array, axis: AxisName | None) -> float:
    """The largest value whose square, summed over all coordinates, stays below an eighth of the largest number."""
    dimension = columns.shape[1] * (1 if axis is None else axes.size(axis))
    return (float(jnp.finfo(wide(columns[:0]).dtype).max) / 8 / max(dimension, 1)) ** 0.5


def squared_distances(products: Array) -> Array:
    r"""Squared Euclidean distances from a Gram matrix: :math:`G_{ii} + G_{jj} - 2 G_{ij}`, at least 0.

    Args:
      products: `[n, n]`, as `gram` gives it.

    Returns:
      `[n, n]`, zero on the diagonal.

    Example:
      >>> import jax.numpy as jnp
      >>> squared_distances(gram(jnp.array([[0.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))).tolist()
      [[0.0, 4.0, 9.0], [4.0, 0.0, 1.0], [9.0, 1.0, 0.0]]
    """
    norms = jnp.diagonal(products)
    return jnp.maximum(norms[:, None] + norms[None, :] - 2 * products, 0.0)


def distances(columns: Array, p: float = 2.0, axis: AxisName | None = None, alive: Array | None = None) -> Array:
    r"""Distances of all pairs of vectors in an L_p norm, from their differences.

    .. math:: D_{ij} = s_{ij} \Bigl( \sum_k (|x_{ik} - x_{jk}| / s_{ij})^p \Bigr)^{1/p}, \qquad
        s_{ij} = \max_k |x_{ik} - x_{jk}|

    The scale s makes the sum exact for any p: a sixteenth power of a gradient of 1e-3 is 0 in float32.

    Args:
      columns: `[n, m]`, a slice of every worker's vector.
      p: at least 1; infinity for the largest difference.
      axis: the axis over which the vectors are split, None where they are whole. One maximum and one sum of n x n
        numbers go over it.
      alive: `[n]`; distances to a worker that is not alive have no meaning. None for all.

    Returns:
      `[n, n]`, float32 or wider. Differences of more than the root of the largest number count as that large.

    Raises:
      ValueError: for p below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[0.0, 0.0], [3.0, 4.0]])
      >>> [round(distances(rows, p)[0, 1].item(), 4) for p in (1, 2, jnp.inf)]
      [7.0, 5.0, 4.0]
    """
    if not p >= 1:
        raise ValueError(f"p must be at least 1, got {p}")
    rows = wide(columns) if alive is None else jnp.where(alive[:, None], wide(columns), 0.0)
    # One over the largest number is 0 where small numbers are flushed; one over its root is not.
    largest = float(jnp.finfo(rows.dtype).max) ** 0.5

    def apart(row: Array) -> Array:
        return jnp.minimum(jnp.abs(rows - row), largest)

    furthest = jax.lax.map(lambda row: jnp.max(apart(row), axis=1, initial=0.0), rows)
    if axis is not None:
        furthest = jax.lax.pmax(furthest, axes.names(axis))
    if p == jnp.inf:
        return furthest
    scale = jnp.where(furthest > 0, furthest, 1.0)
    exponent = int(p) if float(p).is_integer() else p

    def powers(pair: tuple[Array, Array]) -> Array:
        row, scales = pair
        return jnp.sum((apart(row) / scales[:, None]) ** exponent, axis=1)

    return furthest * summed(jax.lax.map(powers, (rows, scale)), axis) ** (1 / p)


def summed(values: Array, axis: AxisName | None) -> Array:
    """A sum over the axis, or the values themselves where there is none."""
    return values if axis is None else jax.lax.psum(values, axes.names(axis))
