"""In equal steps, not in equal queries: dense coordinates learn what backprop learns, one random direction does not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxrobust import backprop, data
from jaxrobust.zeroth_order import coordinate, random_directions

SEEDS, STEPS, RATE, BATCH = 5, 50, 0.25, 256


def logits(params, inputs):
    return jax.nn.relu(inputs @ params["a"] + params["c"]) @ params["b"] + params["d"]


def problem(seed):
    """Parameters of 64-32-10, and the losses of a batch by number."""
    splits = data.digits()
    first, second, order, draws = jax.random.split(jax.random.key(seed), 4)
    params = {
        "a": jax.random.normal(first, (64, 32)) * jnp.sqrt(2 / 64),
        "b": jax.random.normal(second, (32, 10)) * jnp.sqrt(2 / 32),
        "c": jnp.zeros(32),
        "d": jnp.zeros(10),
    }
    source = splits.train.init(order)

    def losses_of(number):
        batch = splits.train.batch(source, number, jnp.arange(BATCH), BATCH)
        inputs = batch.inputs.reshape(BATCH, 64)
        return lambda params: optax.softmax_cross_entropy_with_integer_labels(logits(params, inputs), batch.targets)

    return params, losses_of, draws


def accuracies(estimator):
    """`[seed]` test accuracies on the digits: SGD, momentum 0.9, cosine to 0, gradients clipped."""
    test = data.digits().test.init(jax.random.key(0))
    schedule = optax.cosine_decay_schedule(RATE, STEPS)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.sgd(schedule, momentum=0.9))

    def run(seed):
        params, losses_of, draws = problem(seed)

        def step(number, carry):
            params, momentum = carry
            gradient = estimator(jax.random.fold_in(draws, number), losses_of(number), params).gradient
            with jax.numpy_dtype_promotion("standard"):
                updates, momentum = optimizer.update(gradient, momentum)
                return optax.apply_updates(params, updates), momentum

        params, _ = jax.lax.fori_loop(0, STEPS, step, (params, optimizer.init(params)))
        found = jnp.argmax(logits(params, test.images.reshape(-1, 64)), axis=1)
        return jnp.mean((found == test.labels).astype(jnp.float32))

    return np.asarray(jax.jit(jax.vmap(run))(jnp.arange(SEEDS)))


def first_step(estimator):
    """The gradient of the first batch, `[d]`."""
    params, losses_of, draws = problem(0)
    return ravel_pytree(jax.jit(lambda p: estimator(draws, losses_of(0), p).gradient)(params))[0]


@pytest.mark.slow
def test_dense_coordinates_are_backprop_in_equal_steps():
    exact = accuracies(backprop())
    assert exact.mean() > 0.9
    assert abs(accuracies(coordinate(chunk_size=16)).mean() - exact.mean()) <= 0.01
    # In the first of these steps it is backprop's in direction and in length.
    apart = first_step(coordinate(chunk_size=16)) - first_step(backprop())
    assert jnp.linalg.norm(apart) < 0.05 * jnp.linalg.norm(first_step(backprop()))
    # The control: an estimate that is right on average alone is no gradient.
    assert accuracies(random_directions(1)).mean() < exact.mean() - 0.1
