r"""Where the energy of a perturbation lies among the frequencies.

With F each channel's unitary two-dimensional DFT, frequency k holds :math:`\sum_c |(F \delta)_{kc}|^2` of a
perturbation's squared Euclidean length. White noise spreads it: the largest tenth of many frequencies holds
0.1 (1 + log 10) = 0.33 of it in one channel, less in several. What attacks find is said to be concentrated in few.
"""

import jax
import jax.numpy as jnp

from jaxrobust.geometry.norm import divided
from jaxrobust.typing import Array


def energy_share(delta: Array, share: float = 0.1) -> Array:
    """How much of each perturbation's energy its strongest frequencies hold.

    Args:
      delta: `[batch, height, width, channel]`.
      share: of the height * width frequencies, in (0, 1]; rounded to a whole number of them, at least one.

    Returns:
      `[batch]`, in [0, 1]; 0 for a perturbation of 0.

    Raises:
      ValueError: for another number of axes, or a share out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust import attacks
      >>> flat, point = jnp.ones((8, 8, 1)), jnp.zeros((8, 8, 1)).at[3, 4].set(1.0)
      >>> attacks.energy_share(jnp.stack([flat, point]), 0.125).round(3).tolist()
      [1.0, 0.125]

    Reference: Faghri, Gowal, Vasconcelos, Fleet, Pedregosa and Le Roux, "Bridging the Gap Between Adversarial
    Robustness and Optimization Bias", https://arxiv.org/abs/2102.08868, 2021.
    """
    if delta.ndim != 4:
        raise ValueError(f"delta must be [batch, height, width, channel], got shape {delta.shape}")
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    coefficients = jnp.fft.fft2(delta, axes=(1, 2), norm="ortho")
    energy = jnp.sum(jnp.abs(coefficients) ** 2, axis=-1).reshape(len(delta), -1)
    strongest, _ = jax.lax.top_k(energy, max(1, round(share * energy.shape[1])))
    return jnp.minimum(1, divided(jnp.sum(strongest, axis=-1), jnp.sum(energy, axis=-1)))
