r"""ALQ and AMQ: levels that follow the distribution of the gradients, moved alike on every worker.

.. math:: \min_l \sum_n \gamma_n \int \mathrm{Var}(Q_l(r)) \, dF_n(r), \quad \gamma_n \propto \|v_n\|^\rho

F_n is a normal distribution truncated to [-1, 1], fitted to normalized coordinates. What a worker knows of them are
sums over components: blocks of coordinates whose deviations are alike share one, so that the statistics stay as small
as their number, whatever the dimension. They are gathered over the axis on the steps that a schedule asks for; every
worker then computes the same levels from the same sums. Each worker's weights are scaled to a sum of one first: a
hostile worker bends the levels by its share at most, and one with vectors that are not finite not at all.

With rho = 2 the sum is the expected squared error of all workers. The published code weighs by rho = 1. The normalized
variants minimize the mean relative error of a bucket, rho = 0.

The model is finer than the published one by default. A bucket that spans layers, or a heavy-tailed one, is no normal
distribution, but its blocks of 32 coordinates nearly are, each with its own deviation: their mixture has the bucket's
tails. And buckets are scaled by their maximum: scaled by the Euclidean norm, coordinates shrink to B^(-1/2), and the
outermost levels -1 and 1 are spent on values that no bucket holds.

Reference: Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for
Data-Parallel SGD", https://arxiv.org/abs/2010.12460, 2020 (algorithm 1, section 3).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.aggregation import axes
from jaxrobust.aggregation.codecs.level_fitting import alq_levels, amq_multiplier
from jaxrobust.aggregation.codecs.levels import arbitrary, powers
from jaxrobust.aggregation.codecs.quantization import (
    Quantized,
    bucketed,
    check_bucket,
    dequantize,
    norm_exponent,
    normalized,
    norms,
    quantize,
)
from jaxrobust.aggregation.codecs.truncated_normals import TruncatedNormals, fit
from jaxrobust.geometry import Geometry, linf
from jaxrobust.typing import Array, AxisName, Codec, Key, State

Schedule: TypeAlias = Callable[[Array], Array]
"""`(step) -> bool`: whether levels move at this step, int32 from 0 on."""

_LINF, _FINEST = linf(), -24.0
# Levels keep so many bits: what a compiler's order of summation changes lies far below, and is rounded away.
_PRECISION = 10


class Adapted(NamedTuple):
    """What workers share.

    Attributes:
      levels: `[levels]` float32, sorted, from -1 to 1.
      sums: `[3, components]` float32: weights, and weighted means and second moments of normalized coordinates.
      count: int32, steps done.
    """

    levels: Array
    sums: Array
    count: Array


class Statistics(NamedTuple):
    """How gradients are looked at.

    Attributes:
      schedule: when levels move.
      samples: gradients of so many steps, the last before levels move included, are looked at; 10 in the paper, where
        one worker sampled them.
      components: of the mixture.
      block_size: coordinates of a bucket that are taken for one normal distribution; None for the whole bucket, as
        published.
    """

    schedule: Schedule
    samples: int = 1
    components: int = 64
    block_size: int | None = 32


def steps(first: tuple[int, ...] = (0, 100, 2000), period: int = 10_000) -> Schedule:
    """Some steps at first, then every so many.

    Args:
      first: numbers of steps; the defaults are those of the published CIFAR-10 runs.
      period: multiples of it are steps too.

    Returns:
      A schedule.

    Raises:
      ValueError: for a period that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> when = steps()
      >>> [bool(when(jnp.int32(step))) for step in (0, 1, 100, 20_000)]
      [True, False, True, True]
    """
    if period < 1:
        raise ValueError(f"period must be positive, got {period}")

    def schedule(step: Array) -> Array:
        return jnp.any(step == jnp.array(first, jnp.int32)) | (step % period == 0)

    return schedule


PUBLISHED = Statistics(steps())


def alq(
    bits: int = 3,
    bucket_size: int = 8192,
    *,
    zero_level: bool = False,
    symmetric: bool = False,
    norm: Geometry = _LINF,
    statistics: Statistics = PUBLISHED,
    exponent: float = 2.0,
    sweeps: int = 100,
) -> Codec:
    r"""Adaptive levels: each moves freely to where the variance is least.

    Published figures (three bits, buckets of 8192) come from `norm=geometry.l2()`, `exponent=1.0` and
    `Statistics(steps(), samples=10, block_size=None)`.

    Args:
      bits: b, width of a code, 2 to 8.
      bucket_size: B, coordinates that share a scale; the last bucket may be shorter.
      zero_level: whether zero is fixed as one of 2^b - 1 levels; otherwise all of 2^b levels but -1 and 1 are free,
        zero included.
      symmetric: whether levels come in pairs.
      norm: what scales a bucket, `geometry.linf()` or, as published, `geometry.l2()`.
      statistics: how and when gradients are looked at.
      exponent: rho, of the norms that weigh buckets.
      sweeps: of the descent.

    Returns:
      A `Codec` whose shared state is an `Adapted`; before the first adaptation levels are powers of one half.

    Raises:
      ValueError: for a width outside 2 to 8, a bucket without coordinates, another norm, or statistics of nothing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codec = alq(bits=2, bucket_size=64)
      >>> x = jax.random.normal(jax.random.key(0), (1, 256))
      >>> observe = jax.vmap(codec.observe, in_axes=(0, None, None), axis_name="data", out_axes=None)
      >>> shared = codec.adapt(observe(x, codec.init(256), "data"))
      >>> shared.levels.shape, int(shared.count)
      ((4,), 1)

    Reference: Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for
    Data-Parallel SGD", https://arxiv.org/abs/2010.12460, 2020 (section 3.2).
    """

    def levels(distribution: TruncatedNormals) -> Array:
        return alq_levels(distribution, bits, zero_level=zero_level, symmetric=symmetric, sweeps=sweeps)

    return _adaptive(levels, bits, bucket_size, zero_level, norm, statistics, exponent)


def alq_normalized(
    bits: int = 3,
    bucket_size: int = 8192,
    *,
    zero_level: bool = False,
    symmetric: bool = False,
    norm: Geometry = _LINF,
    statistics: Statistics = PUBLISHED,
    sweeps: int = 100,
) -> Codec:
    r"""ALQ-N: as `alq`, for the mean relative variance of a bucket, whatever its norm.

    Published figures come from `norm=geometry.l2()` and `Statistics(steps(), samples=10, components=1,
    block_size=None)`: one normal distribution for all normalized coordinates.

    Args:
      bits: b, width of a code, 2 to 8.
      bucket_size: B, coordinates that share a scale; the last bucket may be shorter.
      zero_level: whether zero is fixed as one of 2^b - 1 levels.
      symmetric: whether levels come in pairs.
      norm: what scales a bucket, `geometry.linf()` or, as published, `geometry.l2()`.
      statistics: how and when gradients are looked at.
      sweeps: of the descent.

    Returns:
      A `Codec` whose shared state is an `Adapted`.

    Raises:
      ValueError: for a width outside 2 to 8, a bucket without coordinates, another norm, or statistics of nothing.

    Example:
      >>> alq_normalized(bits=4, bucket_size=64).init(100)[0].levels.shape
      (16,)

    Reference: Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for
    Data-Parallel SGD", https://arxiv.org/abs/2010.12460, 2020 (section 3.2).
    """
    return alq(
        bits,
        bucket_size,
        zero_level=zero_level,
        symmetric=symmetric,
        norm=norm,
        statistics=statistics,
        exponent=0.0,
        sweeps=sweeps,
    )


def amq(
    bits: int = 3,
    bucket_size: int = 8192,
    *,
    zero_level: bool = False,
    norm: Geometry = _LINF,
    statistics: Statistics = PUBLISHED,
    exponent: float = 2.0,
) -> Codec:
    r"""Adaptive powers: levels are powers of one number in (0, 1), which moves.

    Published figures come from `norm=geometry.l2()`, `exponent=1.0` and `Statistics(steps(), samples=10,
    block_size=None)`.

    Args:
      bits: b, width of a code, 2 to 8.
      bucket_size: B, coordinates that share a scale; the last bucket may be shorter.
      zero_level: whether zero is one of 2^b - 1 levels, or none of 2^b as published.
      norm: what scales a bucket, `geometry.linf()` or, as published, `geometry.l2()`.
      statistics: how and when gradients are looked at.
      exponent: rho, of the norms that weigh buckets.

    Returns:
      A `Codec` whose shared state is an `Adapted`; before the first adaptation p = 1/2.

    Raises:
      ValueError: for a width outside 2 to 8, a bucket without coordinates, another norm, or statistics of nothing.

    Example:
      >>> amq(bits=2, bucket_size=64).init(100)[0].levels.tolist()
      [-1.0, -0.5, 0.5, 1.0]

    Reference: Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for
    Data-Parallel SGD", https://arxiv.org/abs/2010.12460, 2020 (section 3.3).
    """

    def levels(distribution: TruncatedNormals) -> Array:
        return jnp.asarray(powers(amq_multiplier(distribution, bits, zero_level=zero_level), bits, zero_level))

    return _adaptive(levels, bits, bucket_size, zero_level, norm, statistics, exponent)


def amq_normalized(
    bits: int = 3,
    bucket_size: int = 8192,
    *,
    zero_level: bool = False,
    norm: Geometry = _LINF,
    statistics: Statistics = PUBLISHED,
) -> Codec:
    r"""AMQ-N: as `amq`, for the mean relative variance of a bucket, whatever its norm.

    Published figures come from `norm=geometry.l2()` and `Statistics(steps(), samples=10, components=1,
    block_size=None)`.

    Args:
      bits: b, width of a code, 2 to 8.
      bucket_size: B, coordinates that share a scale; the last bucket may be shorter.
      zero_level: whether zero is one of 2^b - 1 levels, or none of 2^b as published.
      norm: what scales a bucket, `geometry.linf()` or, as published, `geometry.l2()`.
      statistics: how and when gradients are looked at.

    Returns:
      A `Codec` whose shared state is an `Adapted`.

    Raises:
      ValueError: for a width outside 2 to 8, a bucket without coordinates, another norm, or statistics of nothing.

    Example:
      >>> amq_normalized(bits=4, bucket_size=64).init(100)[0].levels.shape
      (16,)

    Reference: Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for
    Data-Parallel SGD", https://arxiv.org/abs/2010.12460, 2020 (section 3.3).
    """
    return amq(bits, bucket_size, zero_level=zero_level, norm=norm, statistics=statistics, exponent=0.0)


def mixture(sums: Array) -> TruncatedNormals:
    """The distribution whose sums were gathered; components without weight stay without.

    Args:
      sums: `[3, components]`, as in `Adapted`.

    Returns:
      A `TruncatedNormals`.

    Example:
      >>> import jax.numpy as jnp
      >>> mixture(jnp.array([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])).sigma.tolist()
      [0.5, 1.0]
    """
    weight, first, second = sums
    known = jnp.where(weight > 0, weight, 1.0)
    mean = first / known
    square = jnp.maximum(second / known - mean**2, 4.0**_FINEST)
    return TruncatedNormals(mean, jnp.where(weight > 0, jnp.sqrt(square), 1.0), weight)


def _adaptive(
    fitted: Callable[[TruncatedNormals], Array],
    bits: int,
    bucket_size: int,
    zero_level: bool,
    norm: Geometry,
    statistics: Statistics,
    exponent: float,
) -> Codec:
    initial, norm_power = powers(0.5, bits, zero_level), norm_exponent(norm)
    check_bucket(bucket_size)
    schedule, samples, components, block_size = statistics
    block = bucket_size if block_size is None else min(block_size, bucket_size)
    if min(samples, components, block) < 1:
        raise ValueError(f"samples, components and block_size must be positive, got {samples}, {components}, {block}")

    def init(dimension: int) -> tuple[Adapted, State]:
        del dimension
        return Adapted(jnp.asarray(initial), jnp.zeros((3, components), jnp.float32), jnp.int32(0)), ()

    def encode(key: Key, x: Array, state: tuple[Adapted, State]) -> tuple[Quantized, State]:
        rounding = arbitrary(state[0].levels).rounding
        return quantize(key, x, rounding, bits=bits, bucket_size=bucket_size, exponent=norm_power), state[1]

    def decode(wire: Quantized, shared: Adapted) -> Array:
        return dequantize(wire, shared.levels, bits=bits, bucket_size=bucket_size)

    def observe(x: Array, state: tuple[Adapted, State], axis: AxisName) -> Adapted:
        shared = state[0]
        asked = jnp.stack([schedule(shared.count + ahead) for ahead in range(samples)]).any()

        def gather() -> Array:
            own = _sums(x, bucket_size, block, components, norm_power, exponent)
            # Gathered, and not summed by the network: workers are added up in one order on every kind of mesh.
            return shared.sums + jnp.sum(axes.gather(own, axis), axis=0)

        return shared._replace(sums=jax.lax.cond(asked, gather, lambda: shared.sums))

    def adapt(shared: Adapted) -> Adapted:
        levels, sums, count = shared

        def move() -> tuple[Array, Array]:
            # Without statistics (gradients of zeros, or none finite) there is nothing to follow.
            moved = jax.lax.reduce_precision(fitted(mixture(sums)), exponent_bits=8, mantissa_bits=_PRECISION)
            return jnp.where(jnp.sum(sums[0]) > 0, moved, levels), jnp.zeros_like(sums)

        levels, sums = jax.lax.cond(schedule(count), move, lambda: (levels, sums))
        return Adapted(levels, sums, count + 1)

    return Codec(init, encode, decode, observe, adapt, bucket_size)


def _sums(x: Array, bucket_size: int, block: int, components: int, norm_power: float, exponent: float) -> Array:
    """One worker's statistics, `[3, components]`, with weights that sum to one, or all zero."""
    buckets = bucketed(x, bucket_size)
    scale = norms(buckets, norm_power)
    sound = (scale > 0) & jnp.isfinite(scale)
    r = jnp.pad(normalized(buckets, scale), ((0, 0), (0, -bucket_size % block)))
    blocks = r.reshape(-1, block)
    per_bucket = blocks.shape[0] // buckets.shape[0]
    # How many coordinates of each block are the vector's own: neither a bucket's nor the vector's padding.
    bucket, place = np.divmod(np.arange(blocks.shape[0], dtype=np.int64), per_bucket)
    own = np.minimum(bucket_size, x.size - bucket * bucket_size) - place * block
    count = jnp.asarray(np.clip(own, 0, block).astype(np.int32))
    mean, sigma, _ = fit(blocks, count)
    size = jnp.where(sound, scale / jnp.max(jnp.where(sound, scale, 0.0)), 0.0)
    power = jnp.where(sound, jnp.where(sound, size, 1.0) ** exponent, 0.0)
    weight = jnp.repeat(power, per_bucket) * count.astype(jnp.float32)
    total = jnp.where(jnp.all(jnp.isfinite(scale)), jnp.sum(weight), 0.0)
    weight = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1.0), 0.0)
    alike = jnp.clip(jnp.floor((1.0 - jnp.log2(sigma) / _FINEST) * components), 0, components - 1).astype(jnp.int32)
    terms = jnp.stack([weight, weight * mean, weight * (sigma**2 + mean**2)])
    # Sums over masks and no scatter: they are in one order on every device.
    return jnp.sum(jnp.where(alike == jnp.arange(components)[:, None], terms[:, None], 0.0), axis=-1)
