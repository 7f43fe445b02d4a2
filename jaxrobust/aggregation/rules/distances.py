r"""What a rule may ask of whole vectors: how far they lie from each other.

Columns may be split over an axis; each function sums what it found in its own columns once over it, n x n numbers, so
that the result is equal everywhere, to the bit.

.. math:: G_{ij} = \langle x_i - c, x_j - c \rangle, \qquad \|x_i - x_j\|_2^2 = G_{ii} + G_{jj} - 2 G_{ij}

with c the median of each coordinate. The center cancels in every distance, but not in rounding: far from the origin
nothing would be left of a difference in single precision, and a mean as the center could be carried off by one row.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrobust.aggregation import axes
from jaxrobust.aggregation.rules.sorting import by_itself, middle
from jaxrobust.precision import at_least_float32, widened
from jaxrobust.typing import Array, AxisName

# 32 rows of float32 are then a mebibyte, which a core's second-level cache holds.
_BLOCK = 8192


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
    reach = largest_square_root(columns, axis)

    def products(block: Array) -> Array:
        centered, _ = center(block, reach, alive)
        return inner_products(centered)

    return summed(over_blocks(products, columns), axis)


def center(columns: Array, reach: float, alive: Array) -> tuple[Array, Array]:
    """Live rows less the median of each coordinate, cut at a reach; dead rows are 0.

    Args:
      columns: `[n, m]`.
      reach: the largest absolute value, see `largest_square_root`.
      alive: `[n]`.

    Returns:
      `(centered [n, m], center [m])`, float32 or wider.
    """

    def halfway(rows: Array, alive: Array) -> tuple[Array]:
        low, high = middle(rows, alive)
        return (0.5 * low + 0.5 * high,)

    rows = widened(columns)
    (middles,) = by_itself(halfway, alive, rows, alive)
    return jnp.where(alive[:, None], jnp.clip(rows - middles, -reach, reach), 0.0), middles


def inner_products(rows: Array) -> Array:
    """Inner products `[n, n]` of all pairs of rows `[n, m]`, exact."""
    return jax.lax.dot_general(rows, rows, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)


def over_blocks(measure: Callable[..., Array], *arrays: Array) -> Array:
    """Sum what a function finds in blocks of columns; where that pays, on a CPU, one after the other.

    A block stays in the cache while several loops go over it, so that all columns are read from memory once and no
    array as large is ever made.

    Args:
      measure: `(*blocks) -> array`, a sum over the columns that it is given.
      arrays: `[..., m]`, cut alike.

    Returns:
      What the function gives for all columns, up to rounding.

    Example:
      >>> import jax.numpy as jnp
      >>> over_blocks(lambda row: jnp.sum(row), jnp.ones(20000)).item()
      20000.0
    """
    # The last block, whole or not, comes first.
    count = max(arrays[0].shape[-1] - 1, 0) // _BLOCK

    def one_by_one(*arrays: Array) -> Array:
        def add(so_far: Array, number: Array) -> tuple[Array, None]:
            blocks = (jax.lax.dynamic_slice_in_dim(array, number * _BLOCK, _BLOCK, axis=-1) for array in arrays)
            return so_far + measure(*blocks), None

        last = measure(*(array[..., count * _BLOCK :] for array in arrays))
        return jax.lax.scan(add, last, jnp.arange(count, dtype=jnp.int32))[0]

    return jax.lax.platform_dependent(*arrays, cpu=one_by_one, default=measure) if count else measure(*arrays)


def finite_rows(columns: Array) -> Array:
    """Which rows `[n]` of `[n, m]` hold finite numbers only.

    Example:
      >>> import jax.numpy as jnp
      >>> finite_rows(jnp.array([[1.0, 2.0], [jnp.inf, 0.0], [0.0, jnp.nan]])).tolist()
      [True, False, False]
    """

    def by_product(columns: Array) -> Array:
        # Zero times anything else is NaN. A CPU does it at the speed of memory, and the test in three times as long.
        return jnp.isfinite(jnp.matmul(columns, jnp.zeros(columns.shape[1], columns.dtype)))

    def by_test(columns: Array) -> Array:
        return jnp.all(jnp.isfinite(columns), axis=1)

    return jax.lax.platform_dependent(columns, cpu=by_product, default=by_test)


def with_dead_zero(measure: Callable[[Array], Array], columns: Array, alive: Array) -> Array:
    """What a function finds in rows of which the dead are 0; where nobody is dead, no loop has to look who is.

    Args:
      measure: `(rows [n, m]) -> array`.
      columns: `[n, m]`; a dead row may hold anything.
      alive: `[n]`.

    Returns:
      The function's result.
    """
    return jax.lax.cond(
        jnp.all(alive), measure, lambda rows: measure(jnp.where(alive[:, None], rows, jnp.zeros_like(rows))), columns
    )


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
    reach = largest_square_root(columns, axis)

    def products(block: Array, other: Array) -> Array:
        rows, middles = center(block, reach, alive)
        last = jnp.clip(other.astype(rows.dtype) - middles, -reach, reach)
        return inner_products(jnp.concatenate([rows, last[None]]))

    return summed(over_blocks(products, columns, other), axis)


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

    def squares(columns: Array) -> Array:
        rows = widened(columns)
        return jnp.sum(jnp.minimum(jnp.abs(rows - other.astype(rows.dtype)), reach) ** 2, axis=1)

    return summed(jnp.where(alive, with_dead_zero(squares, columns, alive), 0.0), axis)


def norms(columns: Array, axis: AxisName | None, alive: Array) -> Array:
    """Euclidean norms `[n]` of the vectors themselves, about no center, cut as in `gram`; 0 for the dead."""
    reach = largest_square_root(columns, axis)

    def squares(columns: Array) -> Array:
        return jnp.sum(jnp.minimum(jnp.abs(widened(columns)), reach) ** 2, axis=1)

    return jnp.sqrt(summed(with_dead_zero(squares, columns, alive), axis))


def largest_square_root(columns: Array, axis: AxisName | None) -> float:
    """The largest value whose square, summed over all coordinates, stays below an eighth of the largest number."""
    dimension = columns.shape[1] * (1 if axis is None else axes.size(axis))
    return (float(jnp.finfo(at_least_float32(columns.dtype)).max) / 8 / max(dimension, 1)) ** 0.5


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
    rows = widened(columns) if alive is None else jnp.where(alive[:, None], widened(columns), 0.0)
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
