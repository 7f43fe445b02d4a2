"""TRADES on CIFAR-10 with a small convolutional network: real images on a CPU.

Paper: Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically Principled Trade-off between Robustness and
       Accuracy", ICML 2019, https://arxiv.org/abs/1901.08573. The network and the length are ours, sized for two cores.
Command: jaxrobust train configs/cifar10_trades.py --data-dir DIRECTORY
Expected: see README.md for clean and PGD-20 accuracy at 8/255 over all 10,000 test images, means of three seeds.
Device: two CPU cores. Time: twelve minutes, evaluation included.
"""

import functools

import jax
import optax

from jaxrobust import attacks, data, geometry, models, objectives, train


def experiment(
    *,
    data_dir: str = "cifar10",
    steps: int = 3120,
    batch_size: int = 128,
    seed: int = 0,
    beta: float = 6.0,
    learning_rate: float = 0.1,
) -> train.Experiment:
    """TRADES with a small convolutional network on CIFAR-10.

    Args:
      data_dir: directory of CIFAR-10: the binary version, or `.npz` files.
      steps: parameter updates; 390 are an epoch of 128.
      batch_size: examples of one update, over all devices.
      seed: seed of parameters, data order and attacks.
      beta: weight of the robust term.
      learning_rate: peak of the one-cycle schedule.
    """
    images, ball, radius = data.cifar10(data_dir), geometry.linf(), 8 / 255
    pgd = functools.partial(attacks.pgd, ball, step_size=2 / 255, start=attacks.uniform_start)
    return train.Experiment(
        model=models.small_cnn(10, (32, 64, 64), patch=2, mean=models.CIFAR10_MEAN, std=models.CIFAR10_STD),
        data=data.transformed(images.train, data.crop(4), data.flip()),
        test=images.test,
        objective=objectives.trades(
            ball, radius, beta=beta, steps=10, step_size=2 / 255, start=attacks.gaussian_start(0.001)
        ),
        optimizer=optax.chain(
            optax.add_decayed_weights(5e-4, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
            optax.sgd(optax.cosine_onecycle_schedule(steps, learning_rate), momentum=0.9, nesterov=True),
        ),
        evaluate=attacks.accuracy({"pgd-20": pgd(radius, steps=20)}, batch_size=500, examples=1000),
        final=attacks.accuracy(
            {"pgd-20": pgd(radius, steps=20)},
            batch_size=500,
            curve=functools.partial(pgd, steps=20),
            radii=tuple(i * 4 / 255 for i in range(5)),
            curve_examples=1000,
            gallery=10,
        ),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        evaluate_every=1040,
        checkpoint_every=390,
    )
