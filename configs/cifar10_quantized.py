"""CIFAR-10 with gradients in a few bits: one all-reduce of any codec, by four workers.

Paper: Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for Data-Parallel
       SGD", NeurIPS 2020, https://arxiv.org/abs/2010.12460; and Ramezani-Kebrya, Faghri, Markov, Aksenov, Alistarh and
       Roy, "NUQSGD", JMLR 22, https://jmlr.org/papers/v22/20-255.html, 2021. Workers and bits are theirs; the network
       and the length are ours, sized for two cores.
Command: jaxrobust train configs/cifar10_quantized.py --data-dir DIRECTORY --scheme alq --bits 3
Expected: what python tests/benchmarks/quantized_training.py DIRECTORY RESULTS.jsonl, then table RESULTS.jsonl, prints.
Device: two CPU cores. Time: three to six minutes beside other work.
"""

from typing import Literal

import jax
import optax

from jaxrobust import aggregation, attacks, data, models, train
from jaxrobust.aggregation import codecs
from jaxrobust.train.reduction_flags import CODECS

SCHEMES = CODECS | {
    "qsgd_published": lambda bits, size: codecs.qsgd(bits, size, zero_level=False),
    "nuqsgd_published": lambda bits, size: codecs.nuqsgd(bits, size, zero_level=False),
}
ADAPTIVE = ("alq", "amq")


def experiment(
    *,
    data_dir: str = "cifar10",
    scheme: Literal[
        "float32",
        "bfloat16",
        "qsgd",
        "qsgd_published",
        "qsgd_inf",
        "nuqsgd",
        "nuqsgd_published",
        "nuqsgd_inf",
        "ternary",
        "sign",
        "alq",
        "alq_normalized",
        "amq",
        "amq_normalized",
    ] = "qsgd_inf",
    bits: int = 4,
    bucket_size: int = 8192,
    adapt_every: int = 500,
    both_hops: bool = False,
    steps: int = 2000,
    batch_size: int = 128,
    workers: int = 4,
    seed: int = 0,
    learning_rate: float = 0.1,
) -> train.Experiment:
    """A network of two convolutions on CIFAR-10, trained by workers that send packed gradients.

    Args:
      data_dir: directory of CIFAR-10: the binary version, or `.npz` files.
      scheme: how a gradient travels; the "published" ones have no level at zero, as in the released code.
      bits: width of a code, where the codec has one.
      bucket_size: coordinates that share a scale.
      adapt_every: steps between two adaptations of levels, beside those in steps 0 and 100, where the codec has any.
      both_hops: whether the average travels back in codes of 8 bits, not in 32 as published.
      steps: parameter updates.
      batch_size: examples of one update, over all workers.
      workers: how many send a gradient each; on fewer devices, a device plays several.
      seed: seed of parameters, data order and rounding.
      learning_rate: peak of the one-cycle schedule.
    """
    images, devices = data.cifar10(data_dir), jax.device_count()
    if workers % devices:
        raise ValueError(f"workers must be a multiple of the {devices} devices, got {workers}")
    per_device = workers // devices
    adapted = {"statistics": codecs.Statistics(codecs.steps((0, 100), adapt_every))} if scheme[:3] in ADAPTIVE else {}
    return train.Experiment(
        model=models.small_cnn(10, (48, 96), patch=2, mean=models.CIFAR10_MEAN, std=models.CIFAR10_STD),
        data=data.transformed(images.train, data.crop(4), data.flip()),
        test=images.test,
        reduce=aggregation.all_reduce(
            "data" if per_device == 1 else ("data", "worker"),
            codec=SCHEMES[scheme](bits, bucket_size, **adapted),
            broadcast_codec=codecs.qsgd_inf(8, 1024) if both_hops else codecs.float32(),
            key=train.keys_of_run(seed).reduction,
        ),
        optimizer=optax.chain(
            optax.add_decayed_weights(1e-4, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
            optax.sgd(optax.cosine_onecycle_schedule(steps, learning_rate), momentum=0.9),
        ),
        evaluate=attacks.accuracy(batch_size=500),
        steps=steps,
        batch_size=batch_size,
        workers_per_device=per_device,
        seed=seed,
        log_every=100,
    )
