"""TRADES on the embedded digits: the default experiment.

Paper: Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically Principled Trade-off between Robustness and
       Accuracy", ICML 2019, https://arxiv.org/abs/1901.08573.
Command: jaxrobust train configs/digits_trades.py
Expected: see README.md for clean and PGD-50 accuracy at radius 0.1 (l-infinity), means of three seeds.
Device: two CPU cores. Time: one to two minutes.
"""

import functools

import flax.linen as nn
import optax

from jaxrobust import attacks, data, geometry, models, objectives, train


class Net(nn.Module):
    """Three convolutions, the last two of stride 2, and a hidden layer."""

    @nn.compact
    def __call__(self, images, train):
        """Logits of images `[batch, 8, 8, 1]`."""
        del train
        x = images
        for channels, stride in ((16, 1), (32, 2), (32, 2)):
            x = nn.relu(nn.Conv(channels, (3, 3), (stride, stride))(x))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x.reshape(len(x), -1))))


def experiment(
    *,
    steps: int = 2000,
    batch_size: int = 128,
    seed: int = 0,
    radius: float = 0.1,
    beta: float = 3.0,
    learning_rate: float = 2e-3,
) -> train.Experiment:
    """TRADES on 8x8 digits.

    Args:
      steps: parameter updates.
      batch_size: examples of one update, over all devices.
      seed: seed of parameters, data order and attacks.
      radius: of the l-infinity ball, in units of the images' range [0, 1].
      beta: weight of the robust term.
      learning_rate: the peak of Adam's cosine schedule.
    """
    digits, ball = data.digits(), geometry.linf()
    pgd = functools.partial(attacks.pgd, ball, step_size=max(radius, 0.01) / 10, start=attacks.uniform_start)
    return train.Experiment(
        model=models.linen(Net()),
        data=digits.train,
        test=digits.test,
        objective=objectives.trades(ball, radius, beta=beta, steps=10, step_size=radius / 4),
        optimizer=optax.adam(optax.cosine_decay_schedule(learning_rate, steps)),
        evaluate=attacks.accuracy({"pgd-20": pgd(radius, steps=20)}),
        final=attacks.accuracy(
            {"pgd-50": pgd(radius, steps=50)},
            curve=functools.partial(pgd, steps=50),
            radii=tuple(radius * i / 4 for i in range(9)),
            gallery=8,
        ),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        evaluate_every=500,
        checkpoint_every=500,
    )
