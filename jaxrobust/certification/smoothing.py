r"""Randomized smoothing: the class that a classifier gives most often to noisy copies of an image, with a radius.

.. math:: g(x) = \arg\max_c P(f(x + \epsilon) = c), \quad \epsilon \sim N(0, \sigma^2 I)

If the most frequent class has a probability of at least p > 1/2, g does not change within an l2 ball of radius
:math:`\sigma \Phi^{-1}(p)`. From n samples p is bounded from below by the one-sided interval of Clopper and Pearson,
whose class is chosen on other samples: a certificate is wrong with a probability of at most alpha.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial
from scipy import stats

from jaxrobust.attacks.accuracy import gathered
from jaxrobust.trees import as_argument
from jaxrobust.typing import Array, Key, Predict

ABSTAIN = -1
"""The label of an image for which the samples do not suffice."""


class Certificate(NamedTuple):
    """What `certify` found for one image.

    Attributes:
      label: the class, or -1 where it abstains.
      radius: l2, in the image's units; 0 where it abstains.
      lower_bound: of the class's probability under noise.
      counts: `[classes]` int64, of the samples behind the bound.
    """

    label: int
    radius: float
    lower_bound: float
    counts: np.ndarray


class Prediction(NamedTuple):
    """What `predict` found for one image.

    Attributes:
      label: the class, or -1 where it abstains.
      p_value: of the hypothesis that the two most frequent classes are equally probable.
      counts: `[classes]` int64.
    """

    label: int
    p_value: float
    counts: np.ndarray


def certify(
    key: Key,
    logits_fn: Predict,
    image: Array,
    *,
    sigma: float = 0.25,
    samples: int = 100_000,
    selection_samples: int = 100,
    failure_probability: float = 0.001,
    batch_size: int = 1000,
) -> Certificate:
    r"""Certify one image.

    .. math:: r = \sigma \, \Phi^{-1}(\underline{p}), \quad \underline{p} = B^{-1}(\alpha; n_A, n - n_A + 1)

    with n_A of n samples in the class that was most frequent among n_0 others.

    Args:
      key: of the noise; sample i is drawn with a key of its own, so that batches and devices change nothing.
      logits_fn: `[batch, ...] -> [batch, classes]`. A `jax.tree_util.Partial` or a module that is a pytree carries its
        weights as arguments; those of a plain closure are the constants of its first call. Logits that are not finite
        count for no class.
      image: `[...]`, one example without a batch axis; noise takes it out of [0, 1].
      sigma: deviation of the noise, in the image's units.
      samples: n.
      selection_samples: n_0.
      failure_probability: alpha.
      batch_size: noisy copies at once; they are split over the devices of the weights where that comes out even. The
        last batch is filled up: of 1,000 samples and 300 at once, 1,200 copies are classified.

    Returns:
      A `Certificate`. Its radius is at most :math:`\sigma \Phi^{-1}(\alpha^{1/n})`.

    Raises:
      ValueError: for a number out of its range, or logits that are not `[batch, classes]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def logits(images):  # a line: the true radius of the point 0.5 is 0.5
      ...     return jnp.stack([-images[:, 0], images[:, 0]], axis=1)
      >>> found = certify(jax.random.key(0), logits, jnp.array([0.5]), sigma=0.25, samples=1000)
      >>> found.label, 0.3 < found.radius <= 0.5
      (1, True)

    Reference: Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing",
    https://arxiv.org/abs/1902.02918, 2019.
    """
    check_numbers(
        sigma, failure_probability, samples=samples, selection_samples=selection_samples, batch_size=batch_size
    )
    selection, estimation = jax.random.split(key)
    chosen = _counts(selection, logits_fn, image, sigma, selection_samples, batch_size)
    counts = _counts(estimation, logits_fn, image, sigma, samples, batch_size)
    label = int(np.argmax(chosen))
    return certify_counts(label, counts, samples=samples, sigma=sigma, failure_probability=failure_probability)


def certify_counts(
    label: int, counts: np.ndarray, *, sigma: float, samples: int | None = None, failure_probability: float = 0.001
) -> Certificate:
    r"""The certificate that counts of a sample give.

    .. math:: \underline{p} = B^{-1}(\alpha; n_A, n - n_A + 1)

    Args:
      label: A, the class, chosen on other samples.
      counts: `[classes]`, how often each was given.
      sigma: deviation of the noise.
      samples: n, where some gave no class at all (logits that are not finite); the counts' sum by default.
      failure_probability: alpha.

    Returns:
      A `Certificate`; it abstains where the bound is not above one half.

    Raises:
      ValueError: for a number out of its range.

    Example:
      >>> import numpy as np
      >>> found = certify_counts(0, np.array([1000, 0]), sigma=1.0)
      >>> round(found.radius, 3)
      2.463
    """
    check_numbers(sigma, failure_probability)
    counts = np.asarray(counts, np.int64)
    if not 0 <= label < len(counts):
        raise ValueError(f"label must be one of the {len(counts)} classes, got {label}")
    total, own = int(counts.sum()) if samples is None else samples, int(counts[label])
    if total < counts.sum():
        raise ValueError(f"samples must be at least the {counts.sum()} that were counted, got {total}")
    bound = float(stats.beta.ppf(failure_probability, own, total - own + 1)) if own else 0.0
    if bound <= 0.5:
        return Certificate(ABSTAIN, 0.0, bound, counts)
    return Certificate(int(label), sigma * float(stats.norm.ppf(bound)), bound, counts)


def predict(
    key: Key,
    logits_fn: Predict,
    image: Array,
    *,
    sigma: float = 0.25,
    samples: int = 100_000,
    failure_probability: float = 0.001,
    batch_size: int = 1000,
) -> Prediction:
    """The smoothed classifier's answer for one image.

    Args:
      key: of the noise.
      logits_fn: `[batch, ...] -> [batch, classes]`.
      image: `[...]`, one example without a batch axis.
      sigma: deviation of the noise, in the image's units.
      samples: how many noisy copies are classified.
      failure_probability: alpha, of an answer that is not the smoothed classifier's.
      batch_size: noisy copies at once.

    Returns:
      A `Prediction`: the most frequent class, if by a two-sided binomial test it is more frequent than the second.

    Raises:
      ValueError: for a number out of its range, or logits that are not `[batch, classes]`, of two classes or more.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def logits(images):
      ...     return jnp.stack([-images[:, 0], images[:, 0]], axis=1)
      >>> [predict(jax.random.key(0), logits, jnp.array([x]), samples=100).label for x in (0.5, 0.0)]
      [1, -1]

    Reference: Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing",
    https://arxiv.org/abs/1902.02918, 2019.
    """
    check_numbers(sigma, failure_probability, samples=samples, batch_size=batch_size)
    counts = _counts(key, logits_fn, image, sigma, samples, batch_size)
    if counts.size < 2:
        raise ValueError(f"logits_fn must give the logits of two classes or more, got {counts.size}")
    first, second = np.argsort(-counts, kind="stable")[:2]
    p_value = float(stats.binomtest(int(counts[first]), int(counts[first] + counts[second]), 0.5).pvalue)
    return Prediction(int(first) if p_value <= failure_probability else ABSTAIN, p_value, counts)


def _counts(key: Key, logits_fn: Predict, image: Array, sigma: float, samples: int, batch_size: int) -> np.ndarray:
    """`[classes]`, how often each class is given to noisy copies."""
    size, classifier = min(batch_size, samples), as_argument(logits_fn)
    counts = _counted(classifier, key, image, jnp.float32(sigma), samples, size, _apart(classifier, image, size))
    return np.asarray(gathered(counts), np.int64)


def _apart(classifier: Partial, image: Array, size: int) -> NamedSharding | None:
    """How noisy copies are split: over the devices that the weights lie on, over all where they may lie anywhere."""
    held = [leaf for leaf in jax.tree.leaves((classifier, image)) if isinstance(leaf, jax.Array)]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in held):
        return None
    meshes = [leaf.sharding.mesh for leaf in held if isinstance(leaf.sharding, NamedSharding)]
    if meshes:
        mesh = meshes[0]
    elif jax.process_count() > 1 or any(leaf.committed for leaf in held):
        return None
    else:
        mesh = Mesh(np.array(jax.devices()), ("sample",))
    return NamedSharding(mesh, P(mesh.axis_names)) if mesh.size > 1 and size % mesh.size == 0 else None


@partial(jax.jit, static_argnums=(4, 5, 6))
def _counted(
    logits_fn: Predict, key: Key, image: Array, sigma: Array, samples: int, size: int, apart: NamedSharding | None
) -> Array:
    shape = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct((size, *image.shape), image.dtype)).shape
    if len(shape) != 2 or shape[0] != size:
        raise ValueError(f"logits_fn must give [batch, classes], got {shape} for {size} images")

    def add(part: Array, counts: Array) -> Array:
        numbers = part * size + jnp.arange(size)
        noise = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), image.shape, image.dtype))(numbers)
        copies = image + sigma.astype(image.dtype) * noise
        if apart is not None:
            copies = jax.lax.with_sharding_constraint(copies, apart)
        logits = logits_fn(copies)
        given = jnp.argmax(logits, axis=-1)
        # The last batch is filled up; what is beyond the samples does not count, nor an answer that is no number.
        counted = (numbers < samples) & jnp.all(jnp.isfinite(logits), axis=-1)
        hits = (given[:, None] == jnp.arange(shape[1])) & counted[:, None]
        return counts + jnp.sum(hits, axis=0, dtype=jnp.int32)

    return jax.lax.fori_loop(0, -(-samples // size), add, jnp.zeros(shape[1], jnp.int32))


def check_numbers(sigma: float, failure_probability: float, **numbers: int) -> None:
    """Refuse what no certificate can be made of."""
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if not 0 < failure_probability < 1:
        raise ValueError(f"failure_probability must lie in (0, 1), got {failure_probability}")
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
