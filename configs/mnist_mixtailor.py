"""MNIST with hostile workers: a rule drawn anew in each step against rules that an attacker knows.

Paper: Ramezani-Kebrya, Tabrizian, Faghri and Popovski, "MixTailor: Mixed Gradient Aggregation for Robust Learning
       Against Tailored Attacks", TMLR 2022, https://arxiv.org/abs/2207.07941. Workers, faulty ones and the two tailored
       attacks are theirs; the network and the length are ours, sized for two cores.
Command: jaxrobust train configs/mnist_mixtailor.py --data-dir DIRECTORY --rule krum --attack small_epsilon
Expected: what python tests/benchmarks/mixtailor.py table [DIRECTORY] prints for every rule against every attack.
Device: two CPU cores. Time: half a minute; MixTailor's pool of 64 rules compiles for another.
"""

from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax

from jaxrobust import aggregation, attacks, data, models, sampling, train
from jaxrobust.aggregation import attackers, rules

RULES = {
    "mean": lambda faulty: rules.mean(),
    "krum": rules.krum_mixtailor,
    "median": lambda faulty: rules.median(),
    "geometric_median": lambda faulty: rules.geometric_median(),
    "bulyan": rules.bulyan,
    "mixtailor": lambda faulty: rules.mixtailor(rules.mixtailor_pool(faulty)),
}
ATTACKS = {
    "small_epsilon": lambda: attackers.epsilon_reverse(0.1),
    "large_epsilon": lambda: attackers.epsilon_reverse(10.0),
    "little_is_enough": lambda: attackers.little_is_enough(1.5),
    "min_max": attackers.min_max,
}


def experiment(
    *,
    data_dir: str = "",
    rule: Literal["mean", "krum", "median", "geometric_median", "bulyan", "mixtailor"] = "mixtailor",
    attack: Literal["none", "small_epsilon", "large_epsilon", "little_is_enough", "min_max"] = "small_epsilon",
    alike: bool = True,
    workers: int = 12,
    faulty: int = 2,
    steps: int = 1000,
    seed: int = 0,
    learning_rate: float = 0.05,
) -> train.Experiment:
    """A network with one hidden layer, trained by workers of whom some are hostile.

    Args:
      data_dir: directory of MNIST's four files; the embedded digits where none is given.
      rule: how the workers' gradients become one.
      attack: what the hostile workers send; they know all honest gradients, not the rule that was drawn.
      alike: whether all workers draw from all examples, or each from a twelfth of them in order of their labels.
      workers: how many; on fewer devices, a device plays several.
      faulty: how many of them are hostile.
      steps: parameter updates.
      seed: seed of parameters, data order, rules and attacks.
      learning_rate: of SGD with momentum 0.9.
    """
    source, test, labels = _examples(data_dir)
    devices = jax.device_count()
    if workers % devices:
        raise ValueError(f"workers must be a multiple of the {devices} devices, got {workers}")
    per_device, keys = workers // devices, train.keys_of_run(seed)
    # All draw with replacement, from all examples or from a part.
    part = np.arange(len(labels)) % workers if alike else sampling.by_label(labels, workers=workers)
    reduce = aggregation.all_reduce(
        "data" if per_device == 1 else ("data", "worker"), rule=RULES[rule](faulty), key=keys.reduction
    )
    if attack != "none":
        reduce = aggregation.hostile(reduce, ATTACKS[attack](), faulty, key=keys.attack)
    return train.Experiment(
        model=models.mlp(10, widths=(64,)),
        data=sampling.divided(source, part, workers=workers),
        test=test,
        reduce=reduce,
        optimizer=optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(learning_rate, momentum=0.9)),
        evaluate=attacks.accuracy(batch_size=500),
        steps=steps,
        batch_size=32 * workers,
        workers_per_device=per_device,
        seed=seed,
        log_every=100,
    )


def _examples(directory: str) -> tuple:
    """Training examples in the order of the files, test examples, training labels."""
    if directory:
        folder = Path(directory)
        train_files, test_files = (
            [folder / f"{split}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
            for split in ("train", "t10k")
        )
        source, test = data.idx(*train_files, shuffle=False), data.idx(*test_files)
    else:
        digits = data.digits()
        whole = digits.train.batch(
            digits.train.init(jax.random.key(0)), 0, np.arange(digits.train.size), digits.train.size
        )
        source = data.arrays(np.asarray(whole.inputs), np.asarray(whole.targets), shuffle=False)
        test = digits.test
    rows = np.arange(source.size)
    return source, test, np.asarray(source.batch(source.init(jax.random.key(0)), 0, rows, source.size).targets)
