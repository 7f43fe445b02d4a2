"""A run of APGD beside the reference's record of it, and which of its examples rounding alone decides."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import attacks, geometry
from jaxrobust.attacks.search import begin, step

from .golden import model, traces

BALLS = {"Linf": geometry.linf(), "L2": geometry.l2(), "L1": geometry.l1()}
LOSSES = {"ce": {}, "dlr": {"loss": attacks.losses.dlr}, "dlr-targeted": {"targets": 1}}
COUNT = 64


class Agreement(NamedTuple):
    """`[example]` bools: equal flags; images and losses within 1e-9; settled, and so worth comparing."""

    flags: np.ndarray
    same: np.ndarray
    settled: np.ndarray


def to_the_end(search):
    """A compiled run 0 of a batch from given starts, `(logits_fn, images, labels, start) -> SearchState`."""

    @jax.jit
    def run(logits_fn, images, labels, start):
        keys = jax.random.split(jax.random.key(0), len(images))
        state = begin(search, keys, images, labels, logits_fn(images), jnp.zeros(len(images), jnp.int32), start)
        return jax.lax.while_loop(
            lambda state: ~jnp.all(state.done),
            lambda state: step(search, logits_fn, keys, state, images, labels),
            state,
        )

    return run


def shifted(logits_fn, shift, points):
    return logits_fn(points + shift)


def compare(shared, name, norm, loss, steps, *, shifts=0, change=lambda search: search):
    """How a run, changed or not, agrees with the record.

    An example is settled if its run stays the same to 1e-10 while the network's input moves by 1e-15, in each of some
    directions. Elsewhere two losses tie, or a gradient is a difference of nearly equal numbers: there the order of sums
    decides. The untargeted ratio in l2 is not settled either where the label comes third: it is the constant 1, with
    rounding for a gradient.
    """
    stored = traces(shared, name, norm)
    known = {part: stored[f"det_apgd_{loss}_{steps}_{part}"] for part in ("flag", "x_best", "loss_best", "x_best_adv")}
    logits_fn, images, labels = model(shared, name)
    search = change(attacks.apgd(BALLS[norm], float(stored["eps"]), steps=steps, **LOSSES[loss]))

    moves = np.random.default_rng(0).uniform(-1e-15, 1e-15, (1 + shifts, COUNT, *images.shape[1:]))
    moves[0] = 0
    moved = jax.tree_util.Partial(shifted, logits_fn, jnp.asarray(moves.reshape(-1, *images.shape[1:])))
    each = (jnp.concatenate([part[:COUNT]] * (1 + shifts)) for part in (images, labels, stored["det_x_init"]))
    state = jax.device_get(to_the_end(search)(moved, *each))

    def apart(one, other):
        return np.abs(one - other).reshape(*one.shape[:2], -1).max(-1)

    # Where nothing was found the record has the start, and we the best point.
    lost = known["flag"].reshape(-1, 1, 1, 1)
    pairs = [
        (state.memory.best, known["x_best"]),
        (state.memory.value, known["loss_best"]),
        (np.where(np.tile(lost, (1 + shifts, 1, 1, 1)), 0, state.found), np.where(lost, 0, known["x_best_adv"])),
    ]
    ours = [found.reshape(1 + shifts, COUNT, *theirs.shape[1:]) for found, theirs in pairs]
    same = [apart(found[:1], theirs)[0] <= 1e-9 for found, (_, theirs) in zip(ours, pairs, strict=True)]
    settled = [apart(found, found[:1]).max(0) <= 1e-10 for found in ours]
    if (norm, loss) == ("L2", "dlr"):
        settled.append(known["flag"])
    return Agreement(~state.broken[:COUNT] == known["flag"], np.all(same, axis=0), np.all(settled, axis=0))


def as_strong(one, other, again):
    """Whether two attacks leave as many examples right, `[example]` bools each, within four standard errors.

    The error is that of the examples which are right under one attack alone; and these are no more than between one
    and the same attack again, from other starts.
    """
    apart, own = np.sum(one != other), np.sum(one != again)
    return abs(int(one.sum()) - int(other.sum())) <= 4 * np.sqrt(apart) and apart - own <= 4 * np.sqrt(apart + own)


def withstanding(shared, name, norm, radius, **options):
    """Which examples of all are right under an attack in float32, from two keys; and the largest norm, in radii."""
    logits_fn, images, labels = model(shared, name, "float32")
    search = attacks.apgd(BALLS[norm], radius, **options)

    @jax.jit
    def run(key, logits_fn):
        found = search(key, logits_fn, images, labels)
        return found, jnp.argmax(logits_fn(found), -1) == labels

    (found, one), (_, again) = (jax.device_get(run(jax.random.key(seed), logits_fn)) for seed in (0, 1))
    assert found.min() >= 0
    assert found.max() <= 1
    delta = (found.astype(np.float64) - np.asarray(images)).reshape(len(images), -1)
    lengths = np.linalg.norm(delta, {"Linf": np.inf, "L2": 2, "L1": 1}[norm], axis=1)
    return one, again, lengths.max() / radius
