"""A pod whose hosts send few bits and may be wrong: exact inside a host, packed and by a rule drawn anew between hosts.

Paper: Ramezani-Kebrya, Tabrizian, Faghri and Popovski, "MixTailor: Mixed Gradient Aggregation for Robust Learning
       Against Tailored Attacks", TMLR 2022, https://arxiv.org/abs/2207.07941; and Faghri, Tabrizian, Markov, Alistarh,
       Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for Data-Parallel SGD", NeurIPS 2020,
       https://arxiv.org/abs/2010.12460. The papers have one or the other; both at once, in two levels, are ours.
Command: on every host, jaxrobust train configs/pod_quantized_mixtailor.py --data-dir DIRECTORY --run RUN
Expected: no published figure. The step compiles for a TPU v5e-256 (`tests/benchmarks/pod.py`), which says what a chip
       sends and needs.
Device: a TPU pod slice, or hosts with several accelerators; eleven hosts or more for two faulty ones.
Time: that of plain training with the same network, and the codec's: `tests/benchmarks/step_time.py`.

A worker is a host. With `--attack bit_flip` the first hosts send gradients with a flipped bit of an exponent, and the
run's log names them.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxrobust import aggregation, attacks, data, models, train
from jaxrobust.aggregation import attackers, codecs, rules


def pool(faulty: int) -> tuple:
    """Four families as published, without those of the paper's 64 that join by a mean: a flipped exponent moves it."""
    krums = tuple(rules.krum_mixtailor(faulty, p) for p in (1, 2, 4))
    return (*krums, rules.median(), rules.trimmed_mean(faulty), rules.geometric_median(), rules.bulyan(faulty))


ATTACKS = {
    "bit_flip": attackers.bit_flip,
    "small_epsilon": lambda: attackers.epsilon_reverse(0.1),
    "large_epsilon": lambda: attackers.epsilon_reverse(10.0),
}


def experiment(
    *,
    data_dir: str = "cifar10",
    depth: int = 28,
    width: int = 10,
    bits: int = 4,
    bucket_size: int = 1024,
    faulty: int = 2,
    attack: Literal["none", "bit_flip", "small_epsilon", "large_epsilon"] = "none",
    devices_per_worker: int | None = None,
    steps: int = 20_000,
    batch_size: int = 2048,
    learning_rate: float = 0.2,
    seed: int = 0,
) -> train.Experiment:
    """A wide residual network, trained by hosts that send adaptive codes and are joined by a rule drawn in each step.

    Args:
      data_dir: directory of CIFAR-10: the binary version, or `.npz` files.
      depth: 6 n + 4 layers.
      width: factor of the channels.
      bits: width of a code from host to host.
      bucket_size: coordinates that share a scale.
      faulty: hosts that the rules withstand, at least two, of at least 4 f + 3.
      attack: what so many hosts send in place of their gradients; none in earnest.
      devices_per_worker: devices that form one worker; those of one host by default.
      steps: parameter updates.
      batch_size: examples of one update, over all devices.
      learning_rate: peak of the one-cycle schedule.
      seed: seed of parameters, data order, rounding, rules and attacks.
    """
    images, keys = data.cifar10(data_dir), train.keys_of_run(seed)
    members = jax.local_device_count() if devices_per_worker is None else devices_per_worker
    reduce = aggregation.all_reduce(
        "data",
        codec=codecs.alq(bits, bucket_size),
        # The error of the second hop is not divided by the number of workers.
        broadcast_codec=codecs.qsgd_inf(8, bucket_size),
        rule=rules.mixtailor(pool(faulty)),
        key=keys.reduction,
        inner_axis="member" if members > 1 else None,
        inner_workers=members,
    )
    if attack != "none":
        reduce = aggregation.hostile(reduce, ATTACKS[attack](), faulty, key=keys.attack)
    return train.Experiment(
        model=models.wide_resnet(
            depth, width, classes=10, mean=models.CIFAR10_MEAN, std=models.CIFAR10_STD, dtype=jnp.bfloat16
        ),
        data=data.transformed(images.train, data.crop(4), data.flip()),
        test=images.test,
        reduce=reduce,
        optimizer=optax.chain(
            optax.add_decayed_weights(5e-4, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
            optax.sgd(optax.cosine_onecycle_schedule(steps, learning_rate), momentum=0.9, nesterov=True),
        ),
        evaluate=attacks.accuracy(batch_size=1000),
        steps=steps,
        batch_size=batch_size,
        devices_per_worker=members,
        seed=seed,
        evaluate_every=max(1, steps // 20),
        checkpoint_every=max(1, steps // 20),
        log_every=50,
    )
