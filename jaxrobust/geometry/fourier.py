r"""Norms of an image's Fourier coefficients: the largest modulus, and its dual, the sum of the moduli.

.. math:: \|x\|_{F,\infty} = \max_k w_k |(Fx)_k|, \qquad \|x\|_{F,1} = \sum_k w_k |(Fx)_k|

with F each channel's unitary two-dimensional DFT and w positive weights of the frequencies, 1 unless they are given.
Both balls are products or sums of disks, and F is unitary: their projections are exact.

Reference: Faghri, Gowal, Vasconcelos, Fleet, Pedregosa and Le Roux, "Bridging the Gap Between Adversarial Robustness
and Optimization Bias", section 4, https://arxiv.org/abs/2102.08868, 2021.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrobust.geometry.norm import Geometry, checked_radius, divided
from jaxrobust.geometry.p_norms import soft_threshold
from jaxrobust.typing import Array, Key, Shape

Weights = Callable[[Shape], Array]
"""`(shape of one example) -> positive weights [height, width]`, which must be equal at a frequency and its opposite."""


def fourier_linf(weights: Weights | None = None) -> Geometry:
    r"""The largest modulus among the coefficients of each channel's unitary 2-D DFT; dual the sum of the moduli.

    With F the DFT over height and width, :math:`\|x\| = \max_k w_k |(Fx)_k|`. The projection shrinks each modulus to
    its limit and keeps the phase: exact, because F is unitary and the ball a product of disks. The steepest direction
    is :math:`F^{-1}(\hat g / (w |\hat g|))`. Arrays are `[height, width, channel]`.

    Args:
      weights: w of each frequency, such as `contrast_sensitivity`; 1 by default.

    Returns:
      The geometry.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> float(geometry.fourier_linf().norm(jnp.ones((4, 4, 1))))
      4.0

    Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias", section 4,
    https://arxiv.org/abs/2102.08868, 2021.
    """

    def project(x: Array, radius: Array | float) -> Array:
        coefficients, w = _fourier(x), _weights(weights, x)
        shrink = jnp.minimum(1, divided(checked_radius(radius, x), w * jnp.abs(coefficients), at_zero=1))
        return _inverse(coefficients * shrink.astype(coefficients.dtype), x)

    def steepest(g: Array) -> Array:
        coefficients = _fourier(g)
        return _inverse(divided(_phase(coefficients), _weights(weights, g).astype(coefficients.dtype)), g)

    def sample(key: Key, shape: Shape) -> Array:
        # The DFT of white noise is independent and standard normal: real where a coefficient is its own conjugate,
        # complex elsewhere. Its distribution function maps each onto a uniform draw from [-1, 1] or the unit disk, and
        # keeps conjugates conjugate.
        noise = jax.random.normal(key, shape)
        coefficients = _fourier(noise)
        modulus = jnp.abs(coefficients)
        disk = jnp.sqrt(-jnp.expm1(-(modulus**2)))
        segment = jax.lax.erf(modulus / math.sqrt(2))
        size = jnp.where(_own_conjugate(shape), segment, disk) / _weights(weights, noise)
        return _inverse(coefficients * divided(size, modulus).astype(coefficients.dtype), noise)

    return Geometry(
        name="fourier_linf" if weights is None else "weighted_fourier_linf",
        norm=lambda x: jnp.max(_weights(weights, x) * jnp.abs(_fourier(x)), initial=0),
        dual_norm=lambda g: jnp.sum(jnp.abs(_fourier(g)) / _weights(weights, g)),
        steepest=steepest,
        project=project,
        sample=sample,
        dual=lambda: fourier_l1(_inverted(weights)),
        exponent=math.inf,
        transform=lambda x: _weights(weights, x).astype(_fourier(x).dtype) * _fourier(x),
        shaped=True,
    )


def fourier_l1(weights: Weights | None = None) -> Geometry:
    r"""The sum of the moduli of the coefficients of each channel's unitary 2-D DFT; dual their largest.

    Gradient descent on a linear convolutional network of two layers tends, on separable data and where its direction
    converges, to a classifier that is smallest in it, and so withstands the largest perturbation in `fourier_linf`. The
    steepest direction is the one wave whose coefficient is largest. Arrays are `[height, width, channel]`.

    Args:
      weights: w of each frequency; 1 by default.

    Returns:
      The geometry.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import geometry
      >>> float(geometry.fourier_l1().norm(jnp.ones((4, 4, 1))))
      4.0

    Reference: Gunasekar, Lee, Soudry and Srebro, "Implicit Bias of Gradient Descent on Linear Convolutional Networks",
    https://arxiv.org/abs/1806.00468, 2018, theorem 2.
    """

    def project(x: Array, radius: Array | float) -> Array:
        coefficients = _fourier(x)
        w, sizes = jnp.broadcast_to(_weights(weights, x), x.shape), jnp.abs(coefficients)
        left = jnp.maximum(sizes - soft_threshold(sizes, radius, w) * w, 0)
        return _inverse(coefficients * divided(left, sizes).astype(coefficients.dtype), x)

    def steepest(g: Array) -> Array:
        coefficients, w = _fourier(g), jnp.broadcast_to(_weights(weights, g), g.shape)
        sizes = jnp.abs(coefficients) / w
        chosen = (jnp.arange(g.size) == jnp.argmax(sizes)).reshape(g.shape)
        # The real part gives half of it to the opposite frequency, where there is one.
        return _inverse(_phase(coefficients) * jnp.where(chosen, 1 / w, 0).astype(coefficients.dtype), g)

    def sample(key: Key, shape: Shape) -> Array:
        # x / (||x|| + e) is uniform for x of density exp(-||x||) and e exponential. With z and z' the DFTs of two
        # fields of white noise, (|z|^2 + |z'|^2) / 2 w has the modulus' law in pairs and alone; z gives the phase.
        one, two, depth = jax.random.split(key, 3)
        noise, other = jax.random.normal(one, shape), jax.random.normal(two, shape)
        coefficients, w = _fourier(noise), _weights(weights, noise)
        sizes = (jnp.abs(coefficients) ** 2 + jnp.abs(_fourier(other)) ** 2) / (2 * w)
        total = jnp.sum(w * sizes) + jax.random.exponential(depth)
        return _inverse(_phase(coefficients) * (sizes / total).astype(coefficients.dtype), noise)

    return Geometry(
        name="fourier_l1" if weights is None else "weighted_fourier_l1",
        norm=lambda x: jnp.sum(_weights(weights, x) * jnp.abs(_fourier(x))),
        dual_norm=lambda g: jnp.max(jnp.abs(_fourier(g)) / _weights(weights, g), initial=0),
        steepest=steepest,
        project=project,
        sample=sample,
        dual=lambda: fourier_linf(_inverted(weights)),
        exponent=1,
        transform=lambda x: _weights(weights, x).astype(_fourier(x).dtype) * _fourier(x),
        shaped=True,
    )


def contrast_sensitivity(pixels_per_degree: float = 32.0) -> Weights:
    r"""Weights of the frequencies after the contrast that people need to see them.

    .. math:: A(f) = 2.6 \, (0.0192 + 0.114 f) \exp(-(0.114 f)^{1.1})

    with f in cycles per degree of visual angle, divided by its largest value on the image's own frequencies: a radius
    means the modulus allowed at the frequency that people see best, whatever the image's size. A weighted ball is
    narrow where they see well.

    Args:
      pixels_per_degree: of visual angle, as the image is seen; positive.

    Returns:
      `(shape) -> [height, width]`, in (0, 1].

    Raises:
      ValueError: if pixels_per_degree is not positive.

    Example:
      >>> from jaxrobust import geometry
      >>> weights = geometry.contrast_sensitivity(32.0)((8, 8, 1))
      >>> (round(float(weights[0, 0]), 3), round(float(weights[0, 2]), 3))
      (0.051, 1.0)

    Reference: Mannos and Sakrison, "The Effects of a Visual Fidelity Criterion on the Encoding of Images", IEEE
    Transactions on Information Theory 20(4), https://doi.org/10.1109/TIT.1974.1055250, 1974.
    """
    if not pixels_per_degree > 0:
        raise ValueError(f"pixels_per_degree must be positive, got {pixels_per_degree}")

    def weights(shape: Shape) -> Array:
        rows, columns = (jnp.fft.fftfreq(side) * pixels_per_degree for side in shape[:2])
        scaled = 0.114 * jnp.sqrt(rows[:, None] ** 2 + columns[None, :] ** 2)
        found = (0.0192 + scaled) * jnp.exp(-(scaled**1.1))
        return found / jnp.max(found)

    return weights


def _fourier(x: Array) -> Array:
    if x.ndim < 2:
        raise ValueError(f"a Fourier norm needs arrays [height, width, ...], got shape {x.shape}")
    return jnp.fft.fft2(x, axes=(0, 1), norm="ortho")


def _inverse(coefficients: Array, like: Array) -> Array:
    return jnp.fft.ifft2(coefficients, axes=(0, 1), norm="ortho").real.astype(like.dtype)


def _phase(coefficients: Array) -> Array:
    return divided(coefficients, jnp.abs(coefficients).astype(coefficients.dtype))


def _weights(weights: Weights | None, x: Array) -> Array:
    """Weights of one example's coefficients, to be broadcast over what follows height and width."""
    if weights is None:
        return jnp.ones((1,) * x.ndim, x.dtype)
    found = weights(x.shape)
    return found.astype(x.dtype).reshape(*found.shape, *(1,) * (x.ndim - 2))


def _inverted(weights: Weights | None) -> Weights | None:
    return None if weights is None else lambda shape: 1 / weights(shape)


def _own_conjugate(shape: Shape) -> Array:
    """Which frequencies of a real field are their own conjugates: 0 and, for even sides, the highest."""
    rows, columns = ((2 * jnp.arange(side)) % side == 0 for side in shape[:2])
    return (rows[:, None] & columns[None, :]).reshape(*shape[:2], *(1,) * (len(shape) - 2))
