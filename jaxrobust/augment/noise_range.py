r"""RangeAugment's additive noise: the range of its strength is trained, towards a target distance from the input.

    x' = clip(x + m n, 0, 1),   n ~ N(0, I),   m = low + u (high - low),   u ~ U(0, 1), one u an image
    low  = 5e-5 sigmoid(r_low),   high = 1e-4 + (1 - 1e-4) sigmoid(r_high)

The bounds' feasible intervals do not meet, so low < high always. Since m is a function of the bounds, both the task's
loss and the penalty reach the free numbers r_low and r_high. The penalty compares the mean squared change of an image
on the scale 0..255, e_b, with that of the target peak signal-to-noise ratio D (dB):

.. math:: P = \frac{\alpha}{255^2} \, \mathrm{mean}_b \, \mathrm{smooth}_{L_1}(e_b, t), \quad t = 255^2 \, 10^{-D / 10}
"""

import jax
import jax.numpy as jnp
import optax

from jaxrobust.typing import Array, Augmentation, Batch, Key, Params

LOW = (0.0, 5e-5)
HIGH = (1e-4, 1.0)
"""Feasible intervals of the two bounds, standard deviations on the scale [0, 1]."""


def noise_range(target_psnr: float = 20.0, *, penalty_weight: float = 100.0, initial_high: float = 0.1) -> Augmentation:
    r"""Noise whose range of strengths is trained.

    .. math:: x' = \mathrm{clip}(x + m n), \quad m \sim U(\mathrm{low}, \mathrm{high})

    Every image is changed. (The published augmentation has three operations and applies each to half of a batch; with
    one operation and a key per example, an image's result depends on neither the batch nor its neighbors.)

    Args:
      target_psnr: D in dB, held constant: 20 is a deviation of 0.1. Strong noise is a low number; the published
        curricula run from 40 dB to 5..30 dB, 5 for large models and 30 for small ones.
      penalty_weight: alpha >= 0; 100 in all published runs.
      initial_high: where the upper bound starts, in (1e-4, 1). The published code gives 0.1 to the sigmoid instead of
        to the bound, and so starts at 0.525.

    Returns:
      An `Augmentation` of images `[batch, ...]` in [0, 1], with parameters `{"low": r_low, "high": r_high}`. Keep
      weight decay away from them: it pulls the bounds to the middle of their intervals.

    Raises:
      ValueError: for a target or a start out of its range, or a negative weight.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust.typing import Batch
      >>> batch = Batch(jnp.full((2, 8, 8, 1), 0.5), jnp.arange(2), jnp.arange(2), jnp.ones(2))
      >>> augment = noise_range(target_psnr=20.0)
      >>> params = augment.init(jax.random.key(0))
      >>> after, penalty = augment.apply(params, jax.random.split(jax.random.key(1), 2), batch, 0)
      >>> after.inputs.shape, [round(float(bound), 3) for bound in bounds(params)]
      ((2, 8, 8, 1), [0.0, 0.1])

    Reference: Mehta, Naderiparizi, Faghri, Horton, Chen, Farhadi, Tuzel and Rastegari, "RangeAugment: Efficient Online
    Augmentation with Range Learning", https://arxiv.org/abs/2212.10553, 2022.
    """
    if not 0 < target_psnr < float("inf"):
        raise ValueError(f"target_psnr must be positive and finite, in dB, got {target_psnr}")
    if not penalty_weight >= 0:
        raise ValueError(f"penalty_weight must not be negative, got {penalty_weight}")
    if not HIGH[0] < initial_high < HIGH[1]:
        raise ValueError(f"initial_high must lie in ({HIGH[0]}, {HIGH[1]}), got {initial_high}")
    share = (initial_high - HIGH[0]) / (HIGH[1] - HIGH[0])

    def init(key: Key) -> Params:
        del key
        return {"low": jnp.float32(0.0), "high": jax.scipy.special.logit(jnp.float32(share))}

    def apply(params: Params, keys: Array, batch: Batch, step: Array) -> tuple[Batch, Array]:
        del step
        low, high = bounds(params)

        def change(key: Key, image: Array) -> Array:
            uniform, normal = jax.random.split(key)
            magnitude = low + jax.random.uniform(uniform) * (high - low)
            noise = jax.random.normal(normal, image.shape, image.dtype)
            return jnp.clip(image + magnitude.astype(image.dtype) * noise, 0.0, 1.0)

        changed = jax.vmap(change)(keys, batch.inputs)
        penalty = penalty_weight * distance_penalty(changed, batch.inputs, target_psnr)
        return batch._replace(inputs=changed), penalty

    return Augmentation(init, apply)


def bounds(params: Params) -> tuple[Array, Array]:
    """The range of the noise's standard deviation, `(low, high)`, from its free numbers."""
    low, high = (
        least + (most - least) * jax.nn.sigmoid(params[name]) for name, (least, most) in (("low", LOW), ("high", HIGH))
    )
    return low, high


def distance_penalty(changed: Array, images: Array, target_psnr: float) -> Array:
    """How far the images' changes are from the target: mean smooth L1 on the scale 0..255**2, divided by 255**2.

    Args:
      changed: `[batch, ...]` in [0, 1].
      images: the same before the change.
      target_psnr: in dB.

    Returns:
      A float32 scalar; multiply by alpha.
    """
    # Squared errors on this scale overflow float16's sums and lose bfloat16's digits.
    difference = 255.0 * (changed.astype(jnp.float32) - images.astype(jnp.float32))
    errors = jnp.mean(difference**2, axis=tuple(range(1, images.ndim)))
    target = 255.0**2 * 10.0 ** (-target_psnr / 10)
    return jnp.mean(optax.losses.huber_loss(errors, jnp.full_like(errors, target))) / 255.0**2
