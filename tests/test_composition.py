"""Everything composes: a covering set of combinations of slot members, each pair of members at least once.

Every row trains three steps on four simulated devices, and each member's own effect is asserted: bits on the wire,
queries, penalty and bounds, weights, averages; a finite loss alone would prove nothing. A new member is a new entry.
"""

import itertools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust import (
    aggregation,
    attacks,
    augment,
    data,
    geometry,
    implicit_bias,
    models,
    objectives,
    sampling,
    train,
    zeroth_order,
)
from jaxrobust.aggregation import attackers, codecs, rules
from jaxrobust.train.step import keys_of_run
from jaxrobust.typing import backprop

DEVICES, BATCH, STEPS, STRATA, RADIUS = 4, 32, 3, 4, 0.1
BALL = geometry.linf()


class Net(nn.Module):
    """Two layers with batch norm."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x.reshape(len(x), -1))
        return nn.Dense(10)(nn.relu(nn.BatchNorm(not train, axis_name=self.axis_name)(x)))


def digits(shuffle):
    """512 random images: what composes does not depend on them."""
    generator = np.random.default_rng(0)
    images, labels = generator.random((512, 8, 8, 1), np.float32), generator.integers(0, 10, 512)
    return data.arrays(images, labels, classes=10, shuffle=shuffle)


def stratified():
    """Strata of unequal sizes, so that the weights differ."""
    assignment = np.minimum(np.arange(512) // 32, STRATA - 1)
    return sampling.stratified(digits(False), assignment, STRATA)


def reduction(axes, name):
    key = jax.random.key(5)
    return {
        "mean": lambda: aggregation.exact_mean(axes),
        "qsgd x mean": lambda: aggregation.all_reduce(axes, codec=codecs.qsgd(4, 64), key=key),
        "qsgd_inf x median": lambda: aggregation.all_reduce(
            axes, codec=codecs.qsgd_inf(4, 64), rule=rules.median(), key=key
        ),
        "alq x geometric median": lambda: aggregation.all_reduce(
            axes, codec=codecs.alq(3, 64), rule=rules.geometric_median(), key=key
        ),
        "signs x clipping": lambda: aggregation.all_reduce(
            axes,
            codec=codecs.error_feedback(codecs.sign(64)),
            rule=rules.centered_clipping(),
            key=key,
            workers=DEVICES * (1 if isinstance(axes, str) else 2),
        ),
        "nuqsgd x mixtailor": lambda: aggregation.all_reduce(
            axes, codec=codecs.nuqsgd(4, 64), rule=rules.mixtailor([rules.median(), rules.mean()]), key=key
        ),
        "hostile median": lambda: aggregation.hostile(
            aggregation.all_reduce(axes, rule=rules.median()), attackers.sign_flip(10.0), faulty=1
        ),
    }[name]()


MEMBERS = {
    "model": {
        "mlp": lambda: models.mlp(10, widths=(4,)),
        "batch norm": lambda: models.linen(Net()),
    },
    "data": {
        "arrays": lambda: digits(True),
        "stratified": stratified,
        "mixture": lambda: data.mixture(digits(True), digits(True), 0.25),
        "flipped": lambda: data.transformed(digits(True), data.crop(1), data.flip()),
    },
    "augment": {"identity": augment.identity, "noise range": lambda: augment.noise_range(20.0)},
    "objective": {
        "cross-entropy": lambda: objectives.cross_entropy(0.1),
        "adversarial": lambda: objectives.adversarial(attacks.fgsm(BALL, RADIUS)),
        "trades": lambda: objectives.trades(BALL, RADIUS, steps=2, step_size=0.05),
        "mart": lambda: objectives.mart(geometry.l2(), 0.5, steps=2),
        "soar": lambda: objectives.soar(BALL, RADIUS),
        "foar": lambda: objectives.foar(geometry.l2(), 0.5),
        "awp": lambda: objectives.awp(objectives.trades(BALL, RADIUS, steps=2, step_size=0.05)),
    },
    "gradient": {
        "backprop": backprop,
        "coordinate": lambda: zeroth_order.coordinate(smoothing=1e-2),
        "random directions": lambda: zeroth_order.random_directions(directions=5),
    },
    "reduce": {
        name: name
        for name in (
            "mean",
            "qsgd x mean",
            "qsgd_inf x median",
            "alq x geometric median",
            "signs x clipping",
            "nuqsgd x mixtailor",
            "hostile median",
        )
    },
    "optimizer": {
        "sgd": lambda: optax.sgd(0.05, momentum=0.9),
        "steepest": lambda: implicit_bias.steepest_descent(geometry.linf(), 1e-5),
        "adam": lambda: optax.adam(1e-2),
    },
    "evaluate": {
        "clean": lambda: attacks.accuracy(examples=64, batch_size=64),
        "pgd": lambda: attacks.accuracy({"pgd": attacks.pgd(BALL, RADIUS, steps=2)}, examples=64, batch_size=64),
    },
    "average": {"none": lambda: None, "moving": lambda: train.moving_average(0.5)},
    "accumulation": {"one": lambda: 1, "two": lambda: 2},
    "workers_per_device": {"one": lambda: 1, "two": lambda: 2},
}


def covering():
    """Rows that hold every pair of members of two slots, greedily: each row takes as many new pairs as it can."""
    slots = list(MEMBERS)
    pairs = {
        frozenset([(a, x), (b, y)]) for a, b in itertools.combinations(slots, 2) for x in MEMBERS[a] for y in MEMBERS[b]
    }
    rows = []
    while pairs:
        row = dict(min(tuple(sorted(pair)) for pair in pairs))
        for slot in slots:
            if slot not in row:
                row[slot] = max(
                    MEMBERS[slot],
                    key=lambda member: sum(frozenset([(slot, member), chosen]) in pairs for chosen in row.items()),
                )
        pairs -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        rows.append({slot: row[slot] for slot in slots})
    return rows


ROWS = covering()


def build(row):
    """The experiment of a row."""
    slots = {slot: MEMBERS[slot][member]() for slot, member in row.items() if slot != "reduce"}
    axes = ("data", "worker") if slots["workers_per_device"] == 2 else "data"
    return train.Experiment(
        **slots, reduce=reduction(axes, row["reduce"]), test=digits(False), batch_size=BATCH, steps=STEPS, log_every=1
    )


def fit(experiment):
    return train.fit(experiment, devices=jax.devices()[:DEVICES])


def size(experiment):
    state = jax.eval_shape(train.prepare_training(experiment, train.make_mesh(jax.devices()[:DEVICES])).init)[0]
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def check(row, experiment, fitted):
    """Each member did what it is for."""
    rows = [found for found in fitted.rows if "split" not in found]
    assert all(np.isfinite(found["loss"]) for found in rows)
    dimension, workers = size(experiment), DEVICES * experiment.workers_per_device
    queries = {"backprop": 1, "coordinate": dimension + 1, "random directions": 6}[row["gradient"]]
    assert rows[0]["queries"] == queries * experiment.accumulation
    width, bucket = {"mean": (32, 1), "hostile median": (32, 1)}.get(row["reduce"], (None, 64))
    codes = {"alq x geometric median": 3, "signs x clipping": 1}
    width = width or codes.get(row["reduce"], 4) + 32 / 64
    columns = aggregation.columns_of(dimension, bucket, workers) if row["reduce"] != "mean" else dimension / workers
    assert rows[0]["bits"] == pytest.approx((workers - 1) * columns * (width + 32))
    assert rows[0]["dropped"] == 0
    if row["augment"] == "noise range":
        first, _ = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1])).init()
        before, after = (jax.device_get(state.params["augment"]) for state in (first, fitted.state))
        assert rows[0]["penalty"] > 0
        assert before["high"] != after["high"]
    else:
        assert rows[0]["penalty"] == 0
    told = {"adversarial_accuracy", "kl", "regularizer"}
    pair = {"adversarial_accuracy", "kl"}
    expected = {
        "cross-entropy": set(),
        "adversarial": {"adversarial_accuracy"},
        "trades": pair,
        "mart": pair,
        "soar": {"adversarial_accuracy", "regularizer"},
        "foar": {"regularizer"},
        "awp": pair,
    }
    assert told & set(rows[0]) == expected[row["objective"]]
    if row["average"] == "moving":
        average, last = jax.tree.leaves(fitted.state.average)[-1], jax.tree.leaves(fitted.state.params)[-1]
        assert not np.array_equal(average, last)
    if row["model"] == "batch norm":
        assert any(
            np.any(np.asarray(leaf) != start)
            for leaf, start in zip(jax.tree.leaves(fitted.state.model), (0.0, 1.0), strict=True)
        )
    assert set(fitted.evaluated.metrics) == {"clean"} | ({"pgd"} if row["evaluate"] == "pgd" else set())
    assert workers == DEVICES * (2 if row["workers_per_device"] == "two" else 1)


def test_the_rows_cover_every_pair():
    for (a, members), (b, others) in itertools.combinations(MEMBERS.items(), 2):
        for x, y in itertools.product(members, others):
            assert any(row[a] == x and row[b] == y for row in ROWS), (a, x, b, y)


EVERYTHING = {
    "model": "batch norm",
    "data": "stratified",
    "augment": "noise range",
    "objective": "trades",
    "gradient": "random directions",
    "reduce": "qsgd_inf x median",
    "optimizer": "steepest",
    "evaluate": "pgd",
    "average": "moving",
    "accumulation": "two",
    "workers_per_device": "one",
}


def test_everything_at_once():
    experiment = build(EVERYTHING)
    fitted = fit(experiment)
    check(EVERYTHING, experiment, fitted)
    # The control of the check: another member in a slot is noticed.
    for slot, other in {"gradient": "backprop", "reduce": "mean", "augment": "identity", "evaluate": "clean"}.items():
        with pytest.raises(AssertionError):
            check({**EVERYTHING, slot: other}, experiment, fitted)


def test_weights_reach_the_loss():
    """The same strata without their weights give another loss, by exactly what the weights say."""
    row = {slot: next(iter(members)) for slot, members in MEMBERS.items()} | {"data": "stratified"}
    experiment = replace(build(row), steps=1, augment=augment.identity())
    source = experiment.data

    def alike(state, step, rows, size):
        return source.batch(state, step, rows, size)._replace(weight=jnp.ones(len(rows)))

    weighted = fit(experiment).rows[0]["loss"]
    unweighted = fit(replace(experiment, data=source._replace(batch=alike))).rows[0]["loss"]
    assert abs(weighted - unweighted) > 1e-3
    trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1]))
    state, _ = trainer.init()
    batch = source.batch(source.init(keys_of_run(experiment.seed).data), 0, jnp.arange(BATCH), BATCH)
    losses, _ = experiment.objective.losses((), None, experiment.model, state.params["model"], state.model, batch)
    assert weighted == pytest.approx(float(jnp.mean(losses * batch.weight)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: " | ".join(row.values()))
def test_a_combination(row):
    experiment = build(row)
    check(row, experiment, fit(experiment))
