"""The embedded digits from function values alone: sparse coordinates whose share in each layer ZO-GraSP chooses.

Paper: Chen, Zhang, Jia, Diffenderfer, Liu, Parasyris, Zhang, Zhang, Kailkhura and Liu, "DeepZero: Scaling up
       Zeroth-Order Optimization for Deep Model Training", ICLR 2024, https://arxiv.org/abs/2310.02025. The recipe is
       theirs (SGD 0.1, momentum 0.9, weight decay 5e-4, smoothing 5e-3, warm-up and cosine); the network, 2,410
       parameters, and the length are ours.
Command: jaxrobust train configs/digits_deepzero.py --sparsity 0.9
Expected: 94.15 % of the test examples with seed 0.
Device: two CPU cores. Time: a quarter of a minute.

Where it differs from the released code: both estimates of ZO-GraSP look along the same directions, and coordinates are
drawn anew in every step and not every five epochs (`--interval`).
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxrobust import attacks, backprop, data, models, train, zeroth_order


def experiment(
    *,
    sparsity: float = 0.9,
    shares: Literal["grasp", "uniform"] = "grasp",
    interval: int = 1,
    static: bool = False,
    rescale: bool = False,
    gradient: Literal["coordinates", "units", "backprop"] = "coordinates",
    steps: int = 600,
    batch_size: int = 256,
    seed: int = 0,
    learning_rate: float = 0.1,
) -> train.Experiment:
    """A network with one hidden layer, trained by a few difference quotients a step.

    Args:
      sparsity: share of the weights that a step does not look at; biases are always looked at. 0 for all.
      shares: whether ZO-GraSP says how the others divide among the layers, or all have the same share.
      interval: steps after which coordinates are drawn anew.
      static: whether the first coordinates are kept.
      rescale: whether slopes are divided by the share, so that the estimate is unbiased.
      gradient: the method; "units" moves activations, "backprop" is the exact gradient for comparison.
      steps: parameter updates.
      batch_size: examples of one update.
      seed: seed of parameters, data order and coordinates.
      learning_rate: peak of the schedule.
    """
    digits, model, keys = data.digits(), models.mlp(10, widths=(32,)), train.keys_of_run(seed)
    if gradient == "backprop":
        estimator = backprop()
    elif gradient == "units":
        estimator = zeroth_order.activation()
    else:
        key = jax.random.fold_in(keys.steps, 1)
        selection = None
        if sparsity > 0:
            densities = layer_shares(model, digits.train, keys, sparsity, shares)
            selection = zeroth_order.uniform_selection(
                densities, key, interval=None if static else interval, rescale=rescale
            )
        estimator = zeroth_order.coordinate(selection=selection)
    return train.Experiment(
        model=model,
        data=digits.train,
        test=digits.test,
        gradient=estimator,
        optimizer=optax.chain(
            optax.add_decayed_weights(5e-4),
            optax.sgd(optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 16, steps), momentum=0.9),
        ),
        evaluate=attacks.accuracy(batch_size=360),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        log_every=50,
    )


def layer_shares(model, source, keys, sparsity, shares):
    """The share of each layer's weights that a step looks at, by ZO-GraSP's scores of the first parameters."""
    batch = source.batch(source.init(keys.data), 0, jnp.arange(256), 256)
    params, state = model.init(jax.random.split(keys.init)[0], batch.inputs[:1])
    if shares == "uniform":
        return jax.tree.map(lambda leaf: 1.0 if leaf.ndim < 2 else 1 - sparsity, params)

    def losses(params):
        logits, _ = model.apply(params, state, batch.inputs, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    scores, _ = zeroth_order.zero_order_grasp(keys.steps, losses, params, zeroth_order.coordinate())
    return zeroth_order.layerwise_densities(scores, sparsity)
