r"""Kolmogorov flow: a two-dimensional fluid that a standing wave of force stirs, as the transport of its vorticity.

.. math:: \omega_t + v \cdot \nabla \omega = \nu \Delta \omega - \alpha \omega - n \gamma \cos(n y), \quad
          v = (\partial_y \psi, -\partial_x \psi), \quad -\Delta \psi = \omega

on a periodic square of side 2 pi, where the force on the velocity is :math:`\gamma \sin(n y)` along x; y is the last
axis. The mean of the vorticity decays as :math:`e^{-\alpha t}` from whatever it was, and stays 0. Without motion the
force alone drives the laminar flow :math:`\omega = -\frac{n \gamma}{\nu n^2 + \alpha} \cos(n y)`, which is steady.
"""

from collections.abc import Callable

import numpy as np

from jaxrobust.solvers.exponential import exponential_step
from jaxrobust.solvers.periodic import Field, Periodic, Spectrum, constant


def kolmogorov(
    points: int = 64,
    dt: float = 0.05,
    *,
    viscosity: float = 0.01,
    drag: float = 0.1,
    mode: int = 4,
    force: float = 1.0,
    order: int = 4,
    substeps: int = 1,
) -> Callable[[Field], Field]:
    r"""Build the solver's step.

    Args:
      points: of the grid along a side, even.
      dt: time of one call, positive.
      viscosity: nu, positive; the Reynolds number is 1 / nu for a force of 1.
      drag: alpha, not negative.
      mode: n, the number of the force's waves, below a third of the points.
      force: gamma.
      order: of the rule in time: 1, 2 or 4.
      substeps: equal steps that one call is made of.

    Returns:
      `(vorticity [..., points, points]) -> vorticity`, dt later, of NumPy arrays or of JAX's.

    Raises:
      ValueError: for a number out of its range; when called, for another number of points.

    Example:
      >>> import numpy as np
      >>> step = kolmogorov(16, dt=1.0, viscosity=0.05, drag=0.2, mode=2, force=0.5)
      >>> laminar = np.tile(-np.cos(2 * np.arange(16) * 2 * np.pi / 16) / (0.05 * 4 + 0.2), (16, 1))
      >>> bool(np.abs(step(laminar) - laminar).max() < 1e-12)
      True

    Reference: Meshalkin and Sinai, "Investigation of the Stability of a Stationary Solution of a System of Equations
    for the Plane Movement of an Incompressible Viscous Liquid", https://doi.org/10.1016/0021-8928(62)90149-1, 1961;
    Chandler and Kerswell, "Invariant Recurrent Solutions Embedded in a Turbulent Two-Dimensional Kolmogorov Flow",
    https://doi.org/10.1017/jfm.2013.122, 2013.
    """
    grid = Periodic(points, 2 * np.pi, 2)
    if not viscosity > 0:
        raise ValueError(f"viscosity must be positive, got {viscosity}")
    if not drag >= 0:
        raise ValueError(f"drag must not be negative, got {drag}")
    if not 1 <= mode < points / 3:
        raise ValueError(f"mode must lie in [1, {points / 3:.1f}), a third of the points, got {mode}")
    kept, (along_x, along_y) = grid.kept, grid.wavenumbers
    square = along_x**2 + along_y**2
    inverse = kept / np.where(square > 0, square, 1.0)
    inverse[0, 0] = 0.0
    # The velocity and the gradient of vorticity are four products of its modes.
    factors = np.stack([1j * along_y * inverse, -1j * along_x * inverse, 1j * along_x * kept, 1j * along_y * kept])
    stirring = grid.spectrum(np.broadcast_to(-mode * force * np.cos(mode * grid.places[1]), (points, points)))

    def nonlinear(modes: Spectrum) -> Spectrum:
        fields = grid.field(constant(factors, modes) * modes[..., None, :, :])
        u, v, slope_x, slope_y = (fields[..., number, :, :] for number in range(4))
        transport = constant(kept, modes) * grid.spectrum(u * slope_x + v * slope_y)
        return constant(stirring, modes) - transport

    linear = -viscosity * square - drag
    return grid.stepped(exponential_step(linear, nonlinear, dt / max(1, substeps), order), substeps)
