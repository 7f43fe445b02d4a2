r"""Exponential time differencing Runge-Kutta: the linear part of an equation exactly, the rest by a quadrature.

.. math:: \hat u_t = \lambda \hat u + N(\hat u), \quad
          \hat u(t + h) = e^{z} \hat u(t) + \int_0^h e^{\lambda (h - s)} N(\hat u(t + s)) \, ds, \quad z = h \lambda

with a number lambda for each Fourier mode. With :math:`\varphi_1 = (e^z - 1) / z, \varphi_2 = (\varphi_1 - 1) / z` and
:math:`\varphi_3 = (\varphi_2 - 1/2) / z`, the rules of orders 1, 2 and 4 are

    1   u' = e^z u + h phi_1 N(u)
    2   a  = e^z u + h phi_1 N(u),  u' = a + h phi_2 (N(a) - N(u))
    4   a  = e^(z/2) u + q N(u),  b = e^(z/2) u + q N(a),  c = e^(z/2) a + q (2 N(b) - N(u)),  q = h/2 phi_1(z/2)
        u' = e^z u + h ((phi_1 - 3 phi_2 + 4 phi_3) N(u) + 2 (phi_2 - 2 phi_3) (N(a) + N(b)) + (4 phi_3 - phi_2) N(c))

The quotients lose all digits where z is near 0; there they are means over a circle around z, as Kassam and Trefethen
showed.

Reference: Cox and Matthews, "Exponential Time Differencing for Stiff Systems",
https://doi.org/10.1006/jcph.2002.6995, 2002; Kassam and Trefethen, "Fourth-Order Time-Stepping for Stiff PDEs",
https://doi.org/10.1137/S1064827502410633, 2005.
"""

from collections.abc import Callable

import numpy as np

from jaxrobust.solvers.periodic import Spectrum, constant


def exponential_step(
    linear: np.ndarray, nonlinear: Callable[[Spectrum], Spectrum], dt: float, order: int = 4
) -> Callable[[Spectrum], Spectrum]:
    """Build one step of an equation that is diagonal in its linear part.

    Args:
      linear: lambda, real, of each mode; it broadcasts against spectra.
      nonlinear: N, of a spectrum.
      dt: h > 0.
      order: 1, 2 or 4.

    Returns:
      `(spectrum) -> spectrum`, of NumPy or of JAX, in the spectrum's precision.

    Raises:
      ValueError: for a time step that is not positive, or another order.

    Example:
      >>> import numpy as np
      >>> step = exponential_step(np.array([-1.0, 0.0]), lambda u: 0 * u + 2.0, dt=0.5)
      >>> step(np.array([3.0 + 0j, 1.0 + 0j])).real.round(4)  # 2 + e^-0.5, and 1 + 2 * 0.5
      array([2.6065, 2.    ])
    """
    if not dt > 0:
        raise ValueError(f"dt must be positive, got {dt}")
    z = dt * np.asarray(linear, float)
    whole, half, (one, two, three), (middle, _, _) = np.exp(z), np.exp(z / 2), _phi(z), _phi(z / 2)

    def first(modes: Spectrum) -> Spectrum:
        return constant(whole, modes) * modes + constant(dt * one, modes) * nonlinear(modes)

    def second(modes: Spectrum) -> Spectrum:
        now = nonlinear(modes)
        guess = constant(whole, modes) * modes + constant(dt * one, modes) * now
        return guess + constant(dt * two, modes) * (nonlinear(guess) - now)

    def fourth(modes: Spectrum) -> Spectrum:
        decay, weight = constant(half, modes), constant(dt / 2 * middle, modes)
        now = nonlinear(modes)
        a = decay * modes + weight * now
        at_a = nonlinear(a)
        at_b = nonlinear(decay * modes + weight * at_a)
        at_c = nonlinear(decay * a + weight * (at_b + at_b - now))
        return (
            constant(whole, modes) * modes
            + constant(dt * (one - 3 * two + 4 * three), modes) * now
            + constant(dt * 2 * (two - 2 * three), modes) * (at_a + at_b)
            + constant(dt * (4 * three - two), modes) * at_c
        )

    orders = {1: first, 2: second, 4: fourth}
    if order not in orders:
        raise ValueError(f"order must be 1, 2 or 4, got {order}")
    return orders[order]


def _phi(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """phi_1, phi_2 and phi_3 of real numbers: means over 32 points of the circle of radius 1 around each."""
    around = z[..., None] + np.exp(2j * np.pi * (np.arange(32) + 0.5) / 32)
    one = (np.exp(around) - 1) / around
    two = (one - 1) / around
    three = (two - 0.5) / around
    return tuple(value.mean(-1).real for value in (one, two, three))
