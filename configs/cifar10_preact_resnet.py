"""PGD adversarial training of a PreActResNet-18 on CIFAR-10.

Paper: Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks",
       ICLR 2018, https://arxiv.org/abs/1706.06083; the network, schedule and stopping point of Rice, Wong and Kolter,
       "Overfitting in adversarially robust deep learning", ICML 2020, https://arxiv.org/abs/2002.11569.
Command: jaxrobust train configs/cifar10_preact_resnet.py --data-dir DIRECTORY
Expected: published: 82.9 % clean and 53.5 % under PGD-10 at 8/255 at the best epoch (106), which is where this schedule
       ends. Not rerun here.
Device: one accelerator. Time: hours.
"""

import jax.numpy as jnp
import optax

from jaxrobust import attacks, data, geometry, models, objectives, train


def experiment(
    *,
    data_dir: str = "cifar10",
    epochs: int = 106,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> train.Experiment:
    """PGD-10 adversarial training with a PreActResNet-18.

    Args:
      data_dir: directory of CIFAR-10: the binary version, or `.npz` files.
      epochs: passes over the 50,000 images; the rate falls tenfold after 100 and after 150 of them.
      batch_size: examples of one update, over all devices.
      learning_rate: of the first phase.
      seed: seed of parameters, data order and attacks.
    """
    images, ball, radius = data.cifar10(data_dir), geometry.linf(), 8 / 255
    epoch = images.train.size // batch_size
    attack = attacks.pgd(ball, radius, steps=10, step_size=2 / 255)
    return train.Experiment(
        model=models.preact_resnet18(classes=10, mean=models.CIFAR10_MEAN, std=models.CIFAR10_STD, dtype=jnp.bfloat16),
        data=data.transformed(images.train, data.crop(4), data.flip()),
        test=images.test,
        objective=objectives.adversarial(attack),
        optimizer=optax.chain(
            optax.add_decayed_weights(5e-4),
            optax.sgd(
                optax.piecewise_constant_schedule(learning_rate, {100 * epoch: 0.1, 150 * epoch: 0.1}), momentum=0.9
            ),
        ),
        evaluate=attacks.accuracy({"pgd-10": attack}, batch_size=1000, examples=1000),
        final=attacks.accuracy({"pgd-10": attack}, batch_size=1000, gallery=10),
        steps=epochs * epoch,
        batch_size=batch_size,
        seed=seed,
        evaluate_every=epoch,
        checkpoint_every=epoch,
        log_every=50,
    )
