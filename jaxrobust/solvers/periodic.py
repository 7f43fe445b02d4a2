r"""A periodic square grid and its Fourier modes: :math:`\hat u_k = \sum_x u(x) e^{-i k \cdot x}`, with k = 2 pi n / L.

Fields are real, `[..., points]` in one dimension and `[..., points, points]` in two; whatever axes lie before are a
batch. A NumPy array stays one, and so does JAX's: one formula is a program outside JAX and a function inside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Field = Any
"""A NumPy or JAX array of floats."""
Spectrum = Any
"""A NumPy or JAX array of complex numbers."""


@dataclass(frozen=True)
class Periodic:
    """Equally spaced points of `[0, length)` along each dimension.

    Attributes:
      points: along a dimension, even.
      length: of a side.
      dimensions: 1 or 2.

    Raises:
      ValueError: for a number out of its range.

    Example:
      >>> import numpy as np
      >>> grid = Periodic(8, 2 * np.pi)
      >>> u = np.sin(2 * grid.places[0])
      >>> np.round(grid.field(1j * grid.wavenumbers[0] * grid.spectrum(u)), 6)[:3]  # 2 cos(2 x)
      array([ 2.,  0., -2.])
    """

    points: int
    length: float
    dimensions: int = 1

    def __post_init__(self) -> None:
        if self.points < 4 or self.points % 2:
            raise ValueError(f"points must be even and at least 4, got {self.points}")
        if not self.length > 0:
            raise ValueError(f"length must be positive, got {self.length}")
        if self.dimensions not in (1, 2):
            raise ValueError(f"dimensions must be 1 or 2, got {self.dimensions}")

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the places."""
        return tuple(range(-self.dimensions, 0))

    @property
    def places(self) -> tuple[np.ndarray, ...]:
        """The coordinates, one array for each dimension, which broadcast to a field."""
        one = np.arange(self.points) * self.length / self.points
        return tuple(np.meshgrid(*[one] * self.dimensions, indexing="ij", sparse=True))

    @property
    def wavenumbers(self) -> tuple[np.ndarray, ...]:
        """k along each dimension, which broadcast to a spectrum."""
        return tuple(2 * np.pi / self.length * number for number in self._numbers())

    @property
    def kept(self) -> np.ndarray:
        """1 for the modes |n| < points / 3 (Orszag's two-thirds rule), 0 for the others.

        A product of two fields of such modes has modes below 2 points / 3; those that the grid cannot tell from lower
        ones fall on modes that are not kept.
        """
        inside = [np.abs(number) < self.points / 3 for number in self._numbers()]
        return np.prod(np.broadcast_arrays(*inside), axis=0).astype(float)

    def spectrum(self, field: Field) -> Spectrum:
        """The modes of a field, `[..., points, points // 2 + 1]` in two dimensions."""
        return namespace(field).fft.rfftn(field, axes=self.axes)

    def field(self, spectrum: Spectrum) -> Field:
        """The field of some modes."""
        return namespace(spectrum).fft.irfftn(spectrum, s=(self.points,) * self.dimensions, axes=self.axes)

    def stepped(self, step: Callable[[Spectrum], Spectrum], count: int) -> Callable[[Field], Field]:
        """A step of modes, taken some times, as a step of fields.

        Args:
          step: of a spectrum.
          count: how often, positive.

        Returns:
          `(field) -> field`, which refuses other shapes.
        """
        if count < 1:
            raise ValueError(f"substeps must be positive, got {count}")

        def fields(field: Field) -> Field:
            if field.shape[-self.dimensions :] != (self.points,) * self.dimensions:
                raise ValueError(f"a state must be [..., {self.points}] on each axis of places, got {field.shape}")
            modes = self.spectrum(field)
            for _ in range(count):
                modes = step(modes)
            return self.field(modes)

        return fields

    def _numbers(self) -> tuple[np.ndarray, ...]:
        whole, half = np.fft.fftfreq(self.points, 1 / self.points), np.arange(self.points // 2 + 1.0)
        return tuple(np.meshgrid(*[whole] * (self.dimensions - 1), half, indexing="ij", sparse=True))


def namespace(array: Any) -> ModuleType:
    """`jax.numpy` for an array of JAX, `numpy` for any other."""
    return jnp if isinstance(array, jax.Array) else np


def constant(values: np.ndarray, spectrum: Spectrum) -> np.ndarray:
    """Numbers in the precision of a spectrum."""
    return values.astype(spectrum.dtype)


def resampled(fields: np.ndarray, points: int, dimensions: int = 1) -> np.ndarray:
    """Fields on a coarser periodic grid: the modes that both grids tell apart, |n| < points / 2.

    Args:
      fields: `[..., fine]`, or `[..., fine, fine]` in two dimensions.
      points: of the coarser grid along a dimension, even.
      dimensions: 1 or 2.

    Returns:
      `[..., points]` or `[..., points, points]`, in the dtype of the fields.

    Raises:
      ValueError: if the grid is not coarser, or points is odd.

    Example:
      >>> import numpy as np
      >>> x = np.arange(16) * 2 * np.pi / 16
      >>> np.abs(resampled(np.sin(x), 8) - np.sin(x[::2])).max() < 1e-12
      np.True_
    """
    fine = fields.shape[-1]
    if points % 2 or not 4 <= points <= fine:
        raise ValueError(f"points must be even, at least 4 and at most those of the fields, {fine}, got {points}")
    before, after = Periodic(fine, 1.0, dimensions), Periodic(points, 1.0, dimensions)
    half = points // 2
    modes = before.spectrum(fields)[..., :half]
    for axis in before.axes[:-1]:
        low, high = np.take(modes, range(half), axis), np.take(modes, range(fine - half + 1, fine), axis)
        nothing = np.zeros_like(np.take(low, [0], axis))
        modes = np.concatenate([low, nothing, high], axis)
    padded = np.concatenate([modes, np.zeros_like(modes[..., :1])], -1)
    return after.field(padded * (points / fine) ** dimensions).astype(fields.dtype)
