r"""Linear functions of an image, parametrized in three ways: the parametrization alone changes what training finds.

    linear                <w, x>                        gradient descent tends to the smallest l2 norm of w
    deep linear           <w, W_{L-1} ... W_1 x>        to the same
    linear convolutional  <w, w_{L-1} * ... * w_1 * x>  to a stationary point of the 2/L quasi-norm of w's spectrum

Each is a binary classifier with the logits :math:`(-s/2, s/2)` of its score s, so that cross-entropy is the logistic
loss of s. "Tends to" is of the direction of w, where it converges, on separable data; for L = 2 the last is the
smallest l1 norm of the spectrum.

Reference: Gunasekar, Lee, Soudry and Srebro, "Implicit Bias of Gradient Descent on Linear Convolutional Networks",
https://arxiv.org/abs/1806.00468, 2018.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxrobust.typing import Array, Key, Model, Params, PyTree, Shape, State


def linear() -> Model:
    """A linear score, from zero weights.

    Returns:
      A `Model` of inputs `[batch, ...]` with logits `[batch, 2]`; its parameter has the shape of one input.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = linear()
      >>> params, state = model.init(jax.random.key(0), jnp.zeros((1, 3)))
      >>> model.apply(params + 1, state, jnp.ones((1, 3)), train=False)[0].tolist()
      [[-1.5, 1.5]]

    Reference: Soudry, Hoffer, Nacson, Gunasekar and Srebro, "The Implicit Bias of Gradient Descent on Separable Data",
    https://arxiv.org/abs/1710.10345, 2018.
    """
    return _binary(lambda key, shape: jnp.zeros(shape), lambda weights, inputs: _inner(weights, inputs))


def deep_linear(widths: Sequence[int] = (100,)) -> Model:
    """A fully connected network without nonlinearity or bias.

    Args:
      widths: of the hidden layers, each at least 1. Their matrices start as Gaussian, of Frobenius norm 1, and the
        last layer at 0.

    Returns:
      A `Model` of inputs `[batch, ...]` with logits `[batch, 2]`.

    Raises:
      ValueError: for a width below 1, or none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params, _ = deep_linear((5,)).init(jax.random.key(0), jnp.zeros((1, 3)))
      >>> [leaf.shape for leaf in params]
      [(3, 5), (5,)]

    Reference: Ji and Telgarsky, "Gradient descent aligns the layers of deep linear networks",
    https://arxiv.org/abs/1810.02032, 2019.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be at least one number from 1 on, got {tuple(widths)}")

    def init(key: Key, shape: Shape) -> Params:
        sides = (math.prod(shape), *widths)
        keys = jax.random.split(key, len(widths))
        hidden = [_unit(k, pair) for k, pair in zip(keys, itertools.pairwise(sides), strict=True)]
        return [*hidden, jnp.zeros(sides[-1])]

    def score(params: Params, inputs: Array) -> Array:
        hidden = inputs.reshape(len(inputs), -1)
        for matrix in params[:-1]:
            hidden = hidden @ matrix
        return hidden @ params[-1]

    return _binary(init, score)


def linear_convolutional(depth: int = 2) -> Model:
    r"""A linear network of full-width circular convolutions, each channel by itself, and a last dense layer.

    A layer is the cross-correlation :math:`h'_n = d^{-1/2} \sum_k w_k h_{n + k \bmod d}` over height and width, in the
    Fourier domain :math:`\hat h' = \overline{\hat w} \hat h` with the unitary DFT.

    Args:
      depth: layers L, the dense one included; at least 2. Filters start as Gaussian of norm 1, the last layer at 0.

    Returns:
      A `Model` of images `[batch, height, width, channel]` with logits `[batch, 2]`; a signal of length d is an image
      `[1, d, 1]`.

    Raises:
      ValueError: for a depth below 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params, _ = linear_convolutional(2).init(jax.random.key(0), jnp.zeros((1, 1, 8, 1)))
      >>> [leaf.shape for leaf in params]
      [(1, 8, 1), (1, 8, 1)]

    Reference: Gunasekar, Lee, Soudry and Srebro, "Implicit Bias of Gradient Descent on Linear Convolutional Networks",
    https://arxiv.org/abs/1806.00468, 2018, theorem 2.
    """
    if depth < 2:
        raise ValueError(f"depth must be at least 2, got {depth}: take linear() for one layer")

    def init(key: Key, shape: Shape) -> Params:
        return [*(_unit(k, shape) for k in jax.random.split(key, depth - 1)), jnp.zeros(shape)]

    def score(params: Params, inputs: Array) -> Array:
        spectrum = _spectrum(inputs)
        for filter_ in params[:-1]:
            spectrum = jnp.conj(_spectrum(filter_[None])) * spectrum
        # Parseval: the dense layer is an inner product of spectra.
        last = jnp.conj(_spectrum(params[-1][None]))
        return jnp.sum((last * spectrum).real, axis=tuple(range(1, inputs.ndim)))

    return _binary(init, score)


def linear_map(logits_fn: Callable[[Array], Array], shape: Shape) -> Array:
    """The weights that a linear binary classifier amounts to: the gradient of the logits' difference.

    Args:
      logits_fn: `(inputs [1, ...]) -> [1, 2]`, linear in its inputs.
      shape: of one input.

    Returns:
      Weights of that shape; the score of x is their inner product with it.

    Example:
      >>> import jax.numpy as jnp
      >>> linear_map(lambda x: jnp.stack([-x[:, 0], 2 * x[:, 1]], 1), (2,)).tolist()
      [1.0, 2.0]

    Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
    https://arxiv.org/abs/2102.08868, 2021, section 3.
    """

    def score(x: Array) -> Array:
        logits = logits_fn(x[None])[0]
        return logits[1] - logits[0]

    return jax.grad(score)(jnp.zeros(shape))


def _binary(init: Callable[[Key, Shape], Params], score: Callable[[Params, Array], Array]) -> Model:
    def initialize(key: Key, inputs: PyTree) -> tuple[Params, State]:
        return init(key, inputs.shape[1:]), ()

    def apply(params: Params, state: State, inputs: PyTree, *, train: bool) -> tuple[Array, State]:
        del train
        half = score(params, inputs) / 2
        return jnp.stack([-half, half], axis=-1), state

    return Model(initialize, apply)


def _inner(weights: Array, inputs: Array) -> Array:
    return inputs.reshape(len(inputs), -1) @ weights.reshape(-1)


def _unit(key: Key, shape: Shape) -> Array:
    found = jax.random.normal(key, shape)
    return found / jnp.linalg.norm(found)


def _spectrum(images: Array) -> Array:
    return jnp.fft.fft2(images, axes=(1, 2), norm="ortho")
