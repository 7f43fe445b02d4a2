r"""Which radius a classifier keeps as dimensions outnumber examples: the paper's experiment on linear models.

A teacher labels n Gaussian points in d dimensions. Every method separates them; they differ in which separator they
find. For an attack norm, the radius kept is a classifier's margin as a share of the largest one:

.. math:: \frac{\min_i y_i \langle w, x_i \rangle / \|w\|_*}{\max_u \min_i y_i \langle u, x_i \rangle / \|u\|_*}

All problems run at once, as does each method's grid of step sizes or strengths: they are padded to the largest n and
mapped. A batch of one ratio d / n pads nothing.

Reference: Faghri, Gowal, Vasconcelos, Fleet, Pedregosa and Le Roux, "Bridging the Gap Between Adversarial Robustness
and Optimization Bias", https://arxiv.org/abs/2102.08868, 2021, section 5.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrobust import geometry
from jaxrobust.geometry import Geometry
from jaxrobust.implicit_bias.linear_models import deep_linear, linear, linear_convolutional, linear_map
from jaxrobust.implicit_bias.margin import signs
from jaxrobust.implicit_bias.proximal_gradient import ProximalState, proximal_gradient
from jaxrobust.implicit_bias.steepest_descent import steepest_descent
from jaxrobust.typing import Array, Key, Model, Params


class Problems(NamedTuple):
    """Several classification problems of one shape.

    Attributes:
      inputs: `[problem, example, 1, d, 1]`: signals, as images of one row.
      labels: `[problem, example]`, -1 or 1.
      present: `[problem, example]`, 1 for an example and 0 for padding.
    """

    inputs: Array
    labels: Array
    present: Array


class Method(NamedTuple):
    """A way to separate data.

    Attributes:
      model: what is trained.
      optimizer: `(value, smoothness) -> optax transformation`, with the traced value from `values` and the Lipschitz
        constant of the loss's gradient in l2.
      loss: `(margins [example], present [example]) -> scalar`.
      values: step sizes or strengths to try.
    """

    model: Model
    optimizer: Callable[[Array, Array], optax.GradientTransformation]
    loss: Callable[[Array, Array], Array]
    values: tuple[float, ...]


def separable(key: Key, ratios: Sequence[float], seeds: int, dimension: int = 100) -> Problems:
    """Gaussian inputs with the labels of a random linear teacher, without noise.

    Args:
      key: of inputs and teachers.
      ratios: d / n of the problems, each at least 1 for data that any labels leave separable.
      seeds: problems of each ratio.
      dimension: d.

    Returns:
      `Problems`, ratio by ratio; those of one seed share teacher and examples, as far as they have them.

    Raises:
      ValueError: for a ratio above the dimension or not positive, or no seed.

    Example:
      >>> import jax
      >>> problems = separable(jax.random.key(0), ratios=(1, 4), seeds=3, dimension=20)
      >>> problems.inputs.shape, problems.present.sum(1).tolist()
      ((6, 20, 1, 20, 1), [20.0, 20.0, 20.0, 5.0, 5.0, 5.0])
    """
    for ratio in ratios:
        if not 0 < ratio <= dimension:
            raise ValueError(f"ratios must be in (0, {dimension}], got {ratio}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    counts = [int(dimension / ratio) for ratio in ratios]

    def draw(key: Key) -> tuple[Array, Array]:
        teacher_key, inputs_key = jax.random.split(key)
        # An example's numbers hang on its own place, not on how many there are.
        keys = jax.vmap(partial(jax.random.fold_in, inputs_key))(jnp.arange(max(counts)))
        inputs = jax.vmap(lambda key: jax.random.normal(key, (1, dimension, 1)))(keys)
        scores = jnp.tensordot(inputs, jax.random.normal(teacher_key, (1, dimension, 1)), 3)
        return inputs, signs(scores)

    inputs, labels = jax.vmap(draw)(jax.random.split(key, seeds))
    present = jnp.repeat(jnp.arange(max(counts)) < jnp.asarray(counts)[:, None], seeds, axis=0)
    return Problems(
        jnp.tile(inputs, (len(counts), 1, 1, 1, 1)), jnp.tile(labels, (len(counts), 1)), present.astype(inputs.dtype)
    )


def logistic(margins: Array, present: Array) -> Array:
    """The mean of log(1 + exp(-m)) over the examples that are there.

    Args:
      margins: `[example]`, signed scores.
      present: `[example]`, 1 or 0.

    Returns:
      A scalar.
    """
    return jnp.sum(present * jax.nn.softplus(-margins)) / jnp.sum(present)


def exponential(margins: Array, present: Array) -> Array:
    """The mean of exp(-m) over the examples that are there.

    Args:
      margins: `[example]`, signed scores.
      present: `[example]`, 1 or 0.

    Returns:
      A scalar.
    """
    return jnp.sum(present * jnp.exp(-margins)) / jnp.sum(present)


def log_exponential(margins: Array, present: Array) -> Array:
    """The logarithm of the mean of exp(-m): its gradient is that of the exponential loss over the loss, never 0.

    Args:
      margins: `[example]`, signed scores.
      present: `[example]`, 1 or 0.

    Returns:
      A scalar.
    """
    return jax.nn.logsumexp(-margins, b=present / jnp.sum(present))


def plain_methods() -> dict[str, Method]:
    """The paper's optimizers and regularizers with its plain steps, each with a grid to tune over.

    Returns:
      Name -> `Method`: coordinate and sign descent with fixed steps and gradient descent with a line search, on the
      logistic loss; FISTA with an l1, l2, l-infinity and Fourier-l1 penalty; gradient descent on the exponential loss
      of a linear convolutional network.
    """

    def descend(norm: Geometry, rates: tuple[float, ...]) -> Method:
        return Method(linear(), lambda rate, _: steepest_descent(norm, rate), logistic, rates)

    def search(rate: Array, _: Array) -> optax.GradientTransformation:
        line = optax.scale_by_backtracking_linesearch(30, decrease_factor=0.5, max_learning_rate=rate)
        return optax.chain(steepest_descent(geometry.l2(), 1.0), line)

    def regularize(norm: Geometry) -> Method:
        def optimizer(strength: Array, smoothness: Array) -> optax.GradientTransformation:
            return proximal_gradient(norm, strength, 1e8 / smoothness, max_backtracking_steps=30)

        return Method(linear(), optimizer, logistic, (1e-9, 1e-8, 1e-7, 1e-6, 1e-5))

    return {
        "coordinate descent": descend(geometry.l1(), (0.1, 1.0, 3.0, 5.0, 10.0)),
        "gradient descent": Method(linear(), search, logistic, (1.0, 1e2, 1e4, 1e6)),
        "sign descent": descend(geometry.linf(), (1e-3, 3e-3, 5e-3, 0.01, 0.03)),
        "convolutional network": Method(
            linear_convolutional(2), lambda rate, _: optax.sgd(rate), exponential, (0.1, 0.3, 1.0, 3.0, 10.0)
        ),
        "l1 penalty": regularize(geometry.l1()),
        "l2 penalty": regularize(geometry.l2()),
        "linf penalty": regularize(geometry.linf()),
        "Fourier-l1 penalty": regularize(geometry.fourier_l1()),
    }


def normalized_methods() -> dict[str, Method]:
    r"""The same optimizers with the steps that reach the largest margin: :math:`\eta / \sqrt t` long, never vanishing.

    One step size serves every ratio, but for the convolutional network: it needs shorter ones where examples are few.

    Returns:
      Name -> `Method`: steepest descent in l1, l2, l-infinity and the Fourier-l1 norm, gradient descent on a deep
      linear network, and on a linear convolutional one, where the loss's logarithm stands for the normalization.
    """

    def falling(rate: Array) -> optax.Schedule:
        return lambda count: rate / jnp.sqrt(count + 1.0)

    def descend(norm: Geometry, rate: float, model: Model | None = None) -> Method:
        return Method(
            linear() if model is None else model,
            lambda value, _: steepest_descent(norm, falling(value), normalized=True),
            log_exponential,
            (rate,),
        )

    return {
        "coordinate descent": descend(geometry.l1(), 2.0),
        "gradient descent": descend(geometry.l2(), 10.0),
        "sign descent": descend(geometry.linf(), 0.1),
        "Fourier-l1 descent": descend(geometry.fourier_l1(), 2.0),
        "deep linear network": descend(geometry.l2(), 0.3, deep_linear((100,))),
        "convolutional network": Method(
            linear_convolutional(2), lambda value, _: optax.sgd(falling(value)), log_exponential, (0.2, 0.1, 0.05)
        ),
    }


def solve(key: Key, method: Method, problems: Problems, steps: int) -> Array:
    """Train a method on every problem with every value of its grid, all at once.

    Args:
      key: of the initial parameters, which differ from problem to problem.
      method: what to train, and how.
      problems: what to separate.
      steps: full-batch updates.

    Returns:
      The linear maps, `[problem, value, 1, d, 1]`.
    """

    def single(key: Key, inputs: Array, labels: Array, present: Array, choice: Array) -> Array:
        rows = (inputs * present[:, None, None, None]).reshape(len(inputs), -1)
        smoothness = jnp.linalg.norm(rows, 2) ** 2 / (4 * jnp.sum(present))
        optimizer = optax.with_extra_args_support(method.optimizer(choice, smoothness))
        start, state = method.model.init(key, inputs)

        def loss(params: Params) -> Array:
            logits = method.model.apply(params, state, inputs, train=True)[0]
            return method.loss(labels * (logits[:, 1] - logits[:, 0]), present)

        def step(carry: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], None]:
            params, memory = carry
            value, slope = jax.value_and_grad(loss)(params)
            updates, memory = optimizer.update(slope, memory, params, value=value, grad=slope, value_fn=loss)
            return (optax.apply_updates(params, updates), memory), None

        (params, memory), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
        params = memory.solution if isinstance(memory, ProximalState) else params
        return linear_map(lambda x: method.model.apply(params, state, x, train=False)[0], inputs.shape[1:])

    over_values = jax.vmap(single, (None, None, None, None, 0))
    mapped = jax.jit(jax.vmap(over_values, (0, 0, 0, 0, None)))
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(problems.inputs)))
    return mapped(keys, *problems, jnp.asarray(method.values))


def margins(weights: Array, problems: Problems, norm: Geometry) -> Array:
    """The margin of every solution on its problem.

    Args:
      weights: `[problem, value, ...]`, as `solve` gives them.
      problems: what was separated.
      norm: of the weights.

    Returns:
      `[problem, value]`; negative where a solution separates its problem wrongly, nan where it is 0 or not finite.
    """

    def single(w: Array, inputs: Array, labels: Array, present: Array) -> Array:
        scores = labels * jnp.tensordot(inputs, w, w.ndim)
        size = norm.norm(w)
        return jnp.where(jnp.isfinite(size), jnp.min(jnp.where(present > 0, scores, jnp.inf)) / size, jnp.nan)

    return jax.vmap(jax.vmap(single, (0, None, None, None)))(weights, *problems)
