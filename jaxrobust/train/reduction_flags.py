"""Names of codecs, rules and attackers on the command line: any configuration's gradients, reduced in any way.

jaxrobust train CONFIG --codec nuqsgd:4:8192 --rule krum --faulty 2 --hostile sign_flip --workers 12
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax

from jaxrobust import geometry
from jaxrobust.aggregation import all_reduce, attackers, codecs, hostile, rules
from jaxrobust.train.configuration import Configuration
from jaxrobust.train.experiment import DATA, WORKER, Experiment
from jaxrobust.train.step import keys_of_run
from jaxrobust.typing import Codec, Rule

CODECS: dict[str, Callable[[int, int], Codec]] = {
    "float32": lambda bits, size: codecs.float32(),
    "bfloat16": lambda bits, size: codecs.bfloat16(),
    "qsgd": codecs.qsgd,
    "qsgd_inf": codecs.qsgd_inf,
    "nuqsgd": codecs.nuqsgd,
    "nuqsgd_inf": lambda bits, size: codecs.nuqsgd(bits, size, norm=geometry.linf()),
    "ternary": lambda bits, size: codecs.ternary(size),
    "sign": lambda bits, size: codecs.error_feedback(codecs.sign(size)),
    "alq": codecs.alq,
    "alq_normalized": codecs.alq_normalized,
    "amq": codecs.amq,
    "amq_normalized": codecs.amq_normalized,
}
# Of codecs that have no choice: how many of BITS and BUCKET_SIZE they take, and the width that BITS must then say.
NUMBERS = {"float32": (0, 32), "bfloat16": (0, 16), "ternary": (2, 2), "sign": (2, 1)}
UNTOLD_RULES: dict[str, Callable[[], Rule]] = {
    "mean": rules.mean,
    "median": rules.median,
    "geometric_median": rules.geometric_median,
}
RULES: dict[str, Callable[[int], Rule]] = {
    "trimmed_mean": rules.trimmed_mean,
    "meamed": rules.meamed,
    "krum": rules.krum,
    "multi_krum": rules.multi_krum,
    "bulyan": rules.bulyan,
    "minimum_diameter": rules.minimum_diameter,
    "smea": rules.smea,
    "caf": rules.caf,
    "mixtailor": lambda faulty: rules.mixtailor(rules.mixtailor_pool(faulty)),
}
ATTACKERS: dict[str, Callable[[], attackers.Attacker]] = {
    "sign_flip": attackers.sign_flip,
    "small_epsilon_reverse": lambda: attackers.epsilon_reverse(0.1),
    "large_epsilon_reverse": lambda: attackers.epsilon_reverse(10.0),
    "little_is_enough": lambda: attackers.little_is_enough(1.5),
    "mimic": attackers.mimic,
    "min_max": attackers.min_max,
    "min_sum": attackers.min_sum,
    "gaussian": attackers.gaussian,
    "constant": attackers.constant,
    "bit_flip": attackers.bit_flip,
    "not_finite": attackers.not_finite,
}


@dataclass(frozen=True)
class ReductionFlags:
    """How the workers' gradients become one, in words.

    Attributes:
      codec: `NAME[:BITS[:BUCKET_SIZE]]`, 4 bits and buckets of 8192 by default.
      rule: a name.
      faulty: f, workers that the rule withstands, and that are hostile where there is an attacker.
      hostile: name of an attacker; None for honest workers.
      workers: how many; one on each device by default.
    """

    codec: str = "float32"
    rule: str = "mean"
    faulty: int = 0
    hostile: str | None = None
    workers: int | None = None

    def apply(self, experiment: Experiment) -> Experiment:
        """The experiment with this reduction.

        Raises:
          ValueError: for a name that there is not, or numbers that do not fit.
        """
        if experiment.devices_per_worker > 1:
            raise ValueError(
                f"the configuration's workers are {experiment.devices_per_worker} devices each, with a reduction of "
                "their own: leave out --codec, --rule, --faulty, --hostile and --workers"
            )
        devices = jax.device_count()
        workers = devices * experiment.workers_per_device if self.workers is None else self.workers
        if workers < 1 or workers % devices:
            raise ValueError(f"workers must be a multiple of the {devices} devices, got {workers}")
        if self.hostile is not None and not 0 < self.faulty < workers:
            raise ValueError(f"faulty must be in [1, {workers - 1}] for a hostile worker, got {self.faulty}")
        if self.rule in RULES and self.faulty < 1:
            raise ValueError(
                f"faulty must be at least 1 for {self.rule}, got {self.faulty}: it is what the rule withstands"
            )
        if self.rule in UNTOLD_RULES and self.hostile is None and self.faulty:
            raise ValueError(f"faulty must be left out for {self.rule} with honest workers, got {self.faulty}")
        known = {**UNTOLD_RULES, **{name: partial(make, self.faulty) for name, make in RULES.items()}}
        per_device, keys = workers // devices, keys_of_run(experiment.seed)
        reduce = all_reduce(
            DATA if per_device == 1 else (DATA, WORKER),
            codec=_codec(self.codec),
            rule=_named(known, "rule", self.rule)(),
            key=keys.reduction,
            workers=workers,
        )
        if self.hostile is not None:
            attacker = _named(ATTACKERS, "hostile", self.hostile)()
            reduce = hostile(reduce, attacker, self.faulty, key=keys.attack)
        return replace(experiment, reduce=reduce, workers_per_device=per_device)


def with_reduction(configuration: Configuration, flags: Mapping[str, Any]) -> Configuration:
    """A configuration whose gradients are reduced as the command line says.

    Args:
      configuration: any.
      flags: those attributes of `ReductionFlags` that were given.

    Returns:
      A configuration that records the flags; the same one where none was given.

    Raises:
      ValueError: when it is built, for a name that there is not or numbers that do not fit.
    """
    if not flags:
        return configuration
    chosen = ReductionFlags(**flags)
    return replace(configuration, build=lambda: chosen.apply(configuration.build()), reduction=dict(flags))


def _codec(words: str) -> Codec:
    name, *numbers = words.split(":")
    try:
        given = [int(number) for number in numbers]
    except ValueError:
        given = [0, 0, 0]
    if len(given) > 2:
        raise ValueError(f"codec must be NAME[:BITS[:BUCKET_SIZE]], got {words}")
    taken, width = NUMBERS.get(name, (2, None))
    if len(given) > taken or (given and width not in (None, given[0])):
        allowed = f"{name}:{width}[:BUCKET_SIZE]" if taken else name
        raise ValueError(f"codec must be {allowed}, for it sends {width} bits in any case, got {words}")
    bits, bucket_size = (given + [4, 8192][len(given) :])[:2]
    return _named(CODECS, "codec", name)(bits, bucket_size)


def _named(table: Mapping[str, Callable], kind: str, name: str) -> Callable:
    if name not in table:
        raise ValueError(f"{kind} must be one of {', '.join(table)}, got {name}")
    return table[name]
