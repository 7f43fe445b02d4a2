r"""The Kuramoto-Sivashinsky equation in one dimension, a chaos: long waves grow, short ones die, waves steepen.

.. math:: u_t + \tfrac12 (u^2)_x + u_{xx} + u_{xxxx} = 0, \quad u(x + L) = u(x)

A wave of wavenumber k that is small grows as :math:`e^{(k^2 - k^4) t}`; the mean of u stays as it is. Space is treated
by Fourier modes (the square without aliases, by the two-thirds rule), time by `exponential_step`.
"""

from collections.abc import Callable

import numpy as np

from jaxrobust.solvers.exponential import exponential_step
from jaxrobust.solvers.periodic import Field, Periodic, Spectrum, constant


def kuramoto_sivashinsky(
    points: int = 64, length: float = 30.0, dt: float = 0.25, *, order: int = 4, substeps: int = 1
) -> Callable[[Field], Field]:
    r"""Build the solver's step.

    .. math:: \hat u_t = (k^2 - k^4) \hat u - \tfrac{i k}{2} \widehat{u^2}

    Args:
      points: of the grid, even; more than 3 L / 2 pi, so that steepening reaches every wave that grows.
      length: L of the domain. The number of growing waves is about L / 2 pi.
      dt: time of one call, positive.
      order: of the rule in time: 1, 2 or 4.
      substeps: equal steps that one call is made of.

    Returns:
      `(u [..., points]) -> u [..., points]`, dt later, of NumPy arrays or of JAX's.

    Raises:
      ValueError: for a number out of its range; when called, for another number of points.

    Example:
      >>> import numpy as np
      >>> step = kuramoto_sivashinsky(64, 2 * np.pi * 4, dt=1.0, substeps=10)
      >>> wave = 1e-6 * np.cos(np.arange(64) * 2 * np.pi * 2 / 64)  # k = 1/2 grows by e^(1/4 - 1/16)
      >>> round(float(np.log(step(wave)[0] / wave[0])), 4)
      0.1875

    Reference: Kuramoto, "Diffusion-Induced Chaos in Reaction Systems", https://doi.org/10.1143/PTPS.64.346, 1978;
    Sivashinsky, "Nonlinear Analysis of Hydrodynamic Instability in Laminar Flames",
    https://doi.org/10.1016/0094-5765(77)90096-0, 1977.
    """
    grid = Periodic(points, length)
    (k,), kept = grid.wavenumbers, grid.kept
    if (growing := (k > 0) & (k < 1) & (kept == 0)).any():
        raise ValueError(
            f"points must be more than 3 length / 2 pi, {1.5 * length / np.pi:.1f}, got {points}: a wave that grows, "
            f"{np.argmax(growing)} on the domain, would not be kept in products, and nothing would stop it"
        )
    slope = -0.5j * k * kept

    def nonlinear(modes: Spectrum) -> Spectrum:
        u = grid.field(constant(kept, modes) * modes)
        return constant(slope, modes) * grid.spectrum(u * u)

    return grid.stepped(exponential_step(k**2 - k**4, nonlinear, dt / max(1, substeps), order), substeps)
