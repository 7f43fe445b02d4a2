r"""The spectral norm of a matrix: its largest singular value; dual the sum of the singular values.

Steepest descent in it moves every singular direction of a layer's gradient by the same amount: with momentum and an
approximate :math:`U V^\top` that is Muon.

Reference: Bernstein and Newhouse, "Old Optimizer, New Norm: An Anthology", https://arxiv.org/abs/2409.20325, 2024.
"""

import jax
import jax.numpy as jnp

from jaxrobust.geometry.norm import Geometry, checked_radius
from jaxrobust.precision import widened
from jaxrobust.typing import Array, Key, Shape


def spectral() -> Geometry:
    r"""The largest singular value of an array seen as the matrix `[everything else, last axis]`.

    With :math:`g = U S V^\top` the steepest direction is :math:`U V^\top` over the singular values that are not 0, and
    the projection cuts singular values at the radius. A convolution's kernel `[height, width, in, out]` is one matrix
    of `out` columns; of a vector, and of a gray image `[height, width, 1]`, it is the Euclidean length.

    Returns:
      The geometry, without `dual`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> geometry.spectral().steepest(jnp.array([[3.0, 0.0], [0.0, -0.5]])).round(3).tolist()
      [[1.0, 0.0], [0.0, -1.0]]

    Reference: Bernstein and Newhouse, "Old Optimizer, New Norm: An Anthology", https://arxiv.org/abs/2409.20325, 2024,
    section 3.
    """

    def steepest(g: Array) -> Array:
        u, s, v = _decompose(g)
        used = s > jnp.max(s, initial=0) * jnp.finfo(g.dtype).eps * max(_matrix(g).shape)
        return (u * used.astype(g.dtype)[None, :] @ v).reshape(g.shape)

    def project(x: Array, radius: Array | float) -> Array:
        u, s, v = _decompose(x)
        return (u * jnp.minimum(s, checked_radius(radius, x))[None, :] @ v).reshape(x.shape)

    def sample(key: Key, shape: Shape) -> Array:
        # (G G' + H H')^(-1/2) G is uniform for Gaussian G [m, n] and H [m, m + 1], m <= n.
        rows, columns = _matrix(jnp.zeros(shape)).shape
        few, many = min(rows, columns), max(rows, columns)
        one, two = jax.random.split(key)
        g, h = jax.random.normal(one, (few, many)), jax.random.normal(two, (few, few + 1))
        values, vectors = jnp.linalg.eigh(g @ g.T + h @ h.T)
        found = (vectors / jnp.sqrt(values)[None, :]) @ (vectors.T @ g)
        return (found if rows <= columns else found.T).reshape(shape)

    return Geometry(
        name="spectral",
        norm=lambda x: jnp.max(_singular_values(x), initial=0),
        dual_norm=lambda g: jnp.sum(_singular_values(g)),
        steepest=steepest,
        project=project,
        sample=sample,
        shaped=True,
    )


def _matrix(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1] if x.ndim else 1)


def _decompose(x: Array) -> tuple[Array, Array, Array]:
    u, s, v = jnp.linalg.svd(widened(_matrix(x)), full_matrices=False)
    return u.astype(x.dtype), s.astype(x.dtype), v.astype(x.dtype)


def _singular_values(x: Array) -> Array:
    return jnp.linalg.svd(widened(_matrix(x)), compute_uv=False).astype(x.dtype)
