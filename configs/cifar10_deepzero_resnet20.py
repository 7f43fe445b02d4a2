"""ResNet-20 on CIFAR-10 from function values alone: sparse coordinates whose share in each layer ZO-GraSP chooses.

Paper: Chen, Zhang, Jia, Diffenderfer, Liu, Parasyris, Zhang, Zhang, Kailkhura and Liu, "DeepZero: Scaling up
       Zeroth-Order Optimization for Deep Model Training", ICLR 2024, https://arxiv.org/abs/2310.02025. The recipe is
       that of the released code: 50 epochs of batches of 256, SGD 0.1 with momentum 0.9 and weight decay 5e-4, three
       epochs of warm-up and a cosine, smoothing 5e-3, batch norm in training mode.
Command: jaxrobust train configs/cifar10_deepzero_resnet20.py --data-dir DIRECTORY --sparsity 0.9
Expected: published: 86.94, 86.46, 84.26 and 73.37 % of the test images at sparsities of 0.8, 0.9, 0.95 and 0.99, and
       92.85 % by backpropagation. Not rerun here.
Device: accelerators; each takes its share of a batch. Time: about 28,200 evaluations a step at a sparsity of 0.9, which
       reuse and structured perturbation make as costly as 5,100: days on one device. On two CPU cores a step takes an
       hour.

Where it differs from the released code: ZO-GraSP's two estimates are by all coordinates (540,000 queries, as many as
twenty steps; `--scores directions` for the published 192 directions, which must then be the same in both), and
coordinates are drawn anew in every step and not every five epochs (`--interval`).
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxrobust import attacks, backprop, data, models, train, zeroth_order


def experiment(
    *,
    data_dir: str = "cifar10",
    sparsity: float = 0.9,
    scores: Literal["coordinates", "directions", "none"] = "coordinates",
    interval: int = 1,
    gradient: Literal["coordinates", "backprop"] = "coordinates",
    epochs: int = 50,
    batch_size: int = 256,
    learning_rate: float = 0.1,
    smoothing: float = 5e-3,
    chunk_bytes: int = 2**31,
    seed: int = 0,
) -> train.Experiment:
    """ResNet-20, trained by difference quotients of some of its weights in each step.

    Args:
      data_dir: directory of CIFAR-10: the binary version, or `.npz` files.
      sparsity: share of the kernels' weights that a step does not look at; batch norm's parameters and biases are
        always looked at. 0 for all.
      scores: how ZO-GraSP finds how the others divide among the layers; "none" for the same share in each.
      interval: steps after which coordinates are drawn anew; 975 are the published five epochs.
      gradient: the method; "backprop" is the exact gradient for comparison.
      epochs: passes over the 50,000 images.
      batch_size: examples of one update, over all devices.
      learning_rate: peak of the schedule.
      smoothing: the step of a difference quotient.
      chunk_bytes: memory that evaluations side by side may take.
      seed: seed of parameters, data order and coordinates.
    """
    images, keys = data.cifar10(data_dir), train.keys_of_run(seed)
    model = models.resnet20(classes=10, mean=models.CIFAR10_MEAN, std=models.CIFAR10_STD)
    epoch = images.train.size // batch_size
    estimator = backprop()
    if gradient == "coordinates":
        selection = None
        if sparsity > 0:
            densities = layer_shares(model, images.train, keys, sparsity, scores, smoothing, chunk_bytes)
            selection = zeroth_order.uniform_selection(densities, jax.random.fold_in(keys.steps, 1), interval=interval)
        estimator = zeroth_order.coordinate(smoothing, selection=selection, chunk_bytes=chunk_bytes)
    return train.Experiment(
        model=model,
        data=data.transformed(images.train, data.crop(4), data.flip()),
        test=images.test,
        gradient=estimator,
        optimizer=optax.chain(
            optax.add_decayed_weights(5e-4),
            optax.sgd(
                optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(3, epochs) * epoch, epochs * epoch),
                momentum=0.9,
            ),
        ),
        evaluate=attacks.accuracy(batch_size=1000),
        steps=epochs * epoch,
        batch_size=batch_size,
        seed=seed,
        evaluate_every=epoch,
        checkpoint_every=max(1, epoch // 10),
        log_every=10,
    )


def layer_shares(model, source, keys, sparsity, scores, smoothing, chunk_bytes):
    """The share of each layer's weights that a step looks at, by ZO-GraSP's scores of the first parameters."""
    batch = source.batch(source.init(keys.data), 0, jnp.arange(250), 250)
    params, state = model.init(jax.random.split(keys.init)[0], batch.inputs[:1])
    if scores == "none":
        return jax.tree.map(lambda leaf: 1.0 if leaf.ndim < 2 else 1 - sparsity, params)

    def losses(params):
        logits, _ = model.apply(params, state, batch.inputs, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    estimator = (
        zeroth_order.coordinate(smoothing, chunk_bytes=chunk_bytes)
        if scores == "coordinates"
        else zeroth_order.random_directions(192, smoothing)
    )
    found, _ = jax.jit(lambda p: zeroth_order.zero_order_grasp(keys.steps, losses, p, estimator))(params)
    return zeroth_order.layerwise_densities(found, sparsity)
