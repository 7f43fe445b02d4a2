r"""Real and generated images in fixed shares of each batch, as adversarial training on generated data uses them.

Of a batch of B examples, :math:`m = \mathrm{round}(f B)` are generated and stand last; the other
:math:`B - m` are real.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust.data.arrays import fingerprint_of
from jaxrobust.typing import Array, Batch, Key, Predict, Source, State


class MixtureState(NamedTuple):
    """State of a mixture.

    Attributes:
      real: state of the source of real examples.
      synthetic: state of the source of generated ones.
    """

    real: State
    synthetic: State


def mixture(real: Source, synthetic: Source, fraction: float) -> Source:
    """Draw a fixed share of each batch from a second source.

    Each source is drawn from as if it were alone, with batches of its own share.

    Args:
      real: shuffled source.
      synthetic: shuffled source of examples of the same shapes.
      fraction: share of generated examples in a batch, in [0, 1]; 0.7 to 0.8 is usual on CIFAR-10.

    Returns:
      A `Source`: real rows first, generated rows after them, with numbers from `real.size` on. Its size is `real.size`:
      an epoch is as many steps as without generated data.

    Raises:
      ValueError: if fraction is outside [0, 1], or the two sources' examples differ in shape or dtype.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxrobust import data
      >>> labels = np.array([0, 1, 2, 3])
      >>> real, generated = (data.arrays(np.full((4, 2), x, np.float32), labels) for x in (0.0, 1.0))
      >>> source = data.mixture(real, generated, 0.75)
      >>> source.batch(source.init(jax.random.key(0)), 0, jnp.arange(4), 4).inputs[:, 0].tolist()
      [0.0, 1.0, 1.0, 1.0]

    Reference: Gowal, Rebuffi, Wiles, Stimberg, Calian and Mann, "Improving Robustness using Generated Data",
    https://arxiv.org/abs/2110.09468, 2021.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    shapes = [_shapes(source) for source in (real, synthetic)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"real and synthetic examples must be alike, got {shapes[0]} and {shapes[1]}")

    def init(key: Key) -> MixtureState:
        first, second = jax.random.split(key)
        return MixtureState(real.init(first), synthetic.init(second))

    def batch(state: MixtureState, step: Array | int, rows: Array, size: int) -> Batch:
        generated = round(size * fraction)
        split = size - generated

        def from_real() -> Batch:
            return real.batch(state.real, step, jnp.minimum(rows, split - 1), split)

        def from_synthetic() -> Batch:
            drawn = synthetic.batch(state.synthetic, step, jnp.maximum(rows - split, 0), generated)
            return drawn._replace(index=drawn.index + real.size)

        if not generated:
            return from_real()
        if not split:
            return from_synthetic()

        def choose(a: Array, b: Array) -> Array:
            return jnp.where((rows < split).reshape(-1, *(1,) * (a.ndim - 1)), a, b)

        # Every row is gathered from both: copying it is far cheaper than a step that treats rows one by one.
        return jax.tree.map(choose, from_real(), from_synthetic())

    def refresh(key: Key, state: MixtureState, predict: Predict) -> MixtureState:
        first, second = jax.random.split(key)
        return MixtureState(
            real.refresh(first, state.real, predict), synthetic.refresh(second, state.synthetic, predict)
        )

    fingerprint = fingerprint_of(real.fingerprint, synthetic.fingerprint, repr(float(fraction)))
    return Source(init, batch, real.size, fingerprint, refresh)


def _shapes(source: Source) -> str:
    def one() -> Batch:
        return source.batch(source.init(jax.random.key(0)), 0, jnp.zeros(1, jnp.int32), source.size)

    found = jax.eval_shape(one)
    leaves = jax.tree.leaves((found.inputs, found.targets))
    return ", ".join(f"{leaf.dtype}{list(leaf.shape[1:])}" for leaf in leaves)
