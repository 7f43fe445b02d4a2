"""SOAR on the embedded digits: a bound of the loss around each image in place of an attack's steps.

Paper: Ma, Faghri, Papernot and Farahmand, "SOAR: Second-Order Adversarial Regularization",
       https://arxiv.org/abs/2004.01832, 2020. One draw, differences of gradients and one step at first are theirs; the
       network and the schedule are those of configs/digits_trades.py.
Command: jaxrobust train configs/digits_soar.py
Expected: what python tests/benchmarks/robust_table.py digits RESULTS.jsonl prints for soar, under AutoAttack as well:
          the paper's own networks fall there from what PGD leaves.
Device: two CPU cores.
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
    samples: int = 1,
    finite_difference: float = 0.01,
    learning_rate: float = 2e-3,
) -> train.Experiment:
    """SOAR on 8x8 digits.

    Args:
      steps: parameter updates.
      batch_size: examples of one update, over all devices.
      seed: seed of parameters, data order, attacks and draws.
      radius: of the l-infinity ball, in units of the images' range [0, 1].
      samples: draws of the regularizer for each example.
      finite_difference: length of the differences of gradients; 0 for exact Hessian-vector products.
      learning_rate: the peak of Adam's cosine schedule.
    """
    digits, ball = data.digits(), geometry.linf()
    pgd = functools.partial(attacks.pgd, ball, step_size=max(radius, 0.01) / 10, start=attacks.uniform_start)
    return train.Experiment(
        model=models.linen(Net()),
        data=digits.train,
        test=digits.test,
        objective=objectives.soar(ball, radius, samples=samples, finite_difference=finite_difference or None),
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
