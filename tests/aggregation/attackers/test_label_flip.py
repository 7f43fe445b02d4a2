"""Label flip: the faulty workers' rows, in every layout of a batch, and nobody else's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxrobust import data, models, train
from jaxrobust.aggregation import Reduction, attackers

CLASSES, SIZE, WORKERS, FAULTY = 10, 24, 4, 1


def numbered():
    """Example n has the label n mod 10."""
    return data.arrays(np.zeros((SIZE, 3), np.uint8), np.arange(SIZE) % CLASSES, shuffle=False)


def flipped(accumulation, rows=None):
    source = attackers.label_flip(
        numbered(), classes=CLASSES, faulty=FAULTY, workers=WORKERS, accumulation=accumulation
    )
    rows = jnp.arange(SIZE) if rows is None else rows
    batch = source.batch(source.init(jax.random.key(0)), 0, rows, SIZE)
    return np.asarray(batch.targets) != np.asarray(rows) % CLASSES, batch


@pytest.mark.parametrize(
    ("accumulation", "bad"), [(1, [*range(6)]), (2, [0, 1, 2, 12, 13, 14]), (6, [*range(0, 24, 4)])]
)
def test_the_first_workers_rows_of_each_part(accumulation, bad):
    found, batch = flipped(accumulation)
    assert np.flatnonzero(found).tolist() == bad
    np.testing.assert_array_equal(batch.targets, np.where(found, 9 - np.arange(SIZE) % 10, np.arange(SIZE) % 10))
    assert batch.targets.dtype == jnp.int32
    # A worker that asks for its own rows alone gets the same labels.
    part, _ = flipped(accumulation, jnp.array([13, 2, 7]))
    np.testing.assert_array_equal(part, found[np.array([13, 2, 7])])


def test_they_are_the_rows_that_the_trainer_gives_the_first_workers():
    """All examples are alike, so that workers' gradients differ where labels were flipped and nowhere else."""
    alike = data.arrays(np.full((48, 3), 255, np.uint8), np.zeros(48, np.int32))

    def differ(workers):
        options = {"classes": CLASSES, "faulty": FAULTY, "workers": workers, "accumulation": 3}
        found = gradients_of(experiment(attackers.label_flip(alike, **options), 3))
        return (np.abs(found - found[-1]).max(axis=1) > 1e-3).tolist()

    assert differ(WORKERS) == [True, False, False, False]
    # Told of half as many workers, it flips the rows of two.
    assert differ(WORKERS // 2) == [True, True, False, False]


def experiment(source, accumulation):
    split = data.Splits(source, source)
    return train.Experiment(
        model=models.mlp(CLASSES, widths=()),
        data=split.train,
        test=split.test,
        batch_size=SIZE,
        accumulation=accumulation,
        workers_per_device=WORKERS,
        steps=1,
    )


def gradients_of(experiment):
    """What each worker hands to the reduction in the first step: a reduction that keeps it as its state."""
    axes = experiment.axes

    def update(gradients, state, params=None, **extra):
        del state, params, extra
        return jax.lax.pmean(gradients, axes), ravel_pytree(gradients)[0]

    keeping = Reduction(
        init=lambda params: jnp.zeros(ravel_pytree(params)[0].shape),
        update=update,
        combine=lambda tree, state: jax.lax.pmean(tree, axes),
        axis=axes,
        averages=True,
    )
    trainer = train.prepare_training(replace(experiment, reduce=keeping), train.make_mesh(jax.devices()[:1]))
    source = trainer.place(experiment.data.init(jax.random.key(0)))
    _, kept, _ = trainer.step(*trainer.init(), source, ())
    assert kept.shape[0] == WORKERS
    return np.asarray(kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, r"classes must be two or more, got 1"),
        ({"faulty": -1}, r"faulty must be from 0 to less than the 4 workers, got -1"),
        ({"faulty": 4}, r"faulty must be from 0 to less than the 4 workers, got 4"),
        ({"accumulation": 0}, r"accumulation must be positive, got 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attackers.label_flip(numbered(), **{"classes": CLASSES, "faulty": 1, "workers": 4, **options})


def test_a_batch_that_does_not_divide_is_refused():
    source = attackers.label_flip(numbered(), classes=CLASSES, faulty=1, workers=5)
    with pytest.raises(ValueError, match=r"batch size must be a multiple of 5 \(5 workers x 1 parts\), got 24"):
        source.batch(source.init(jax.random.key(0)), 0, jnp.arange(SIZE), SIZE)


def test_nobody_faulty_is_the_source():
    source = attackers.label_flip(numbered(), classes=CLASSES, faulty=0, workers=4)
    batch = source.batch(source.init(jax.random.key(0)), 0, jnp.arange(SIZE), SIZE)
    np.testing.assert_array_equal(batch.targets, np.arange(SIZE) % CLASSES)
    assert (source.size, source.fingerprint) == (numbered().size, numbered().fingerprint)
