"""Workers with examples of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data, sampling

LABELS = np.random.default_rng(0).integers(0, 10, 240)


def source():
    return data.arrays(np.arange(240, dtype=np.float32)[:, None] / 240, LABELS, shuffle=False)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_worker_sees_its_part_alone_and_all_of_it(accumulation):
    workers, size = 4, 32
    part = sampling.by_label(LABELS, workers=workers)
    mine = sampling.divided(source(), part, workers=workers, accumulation=accumulation)
    state = mine.init(jax.random.key(0))
    seen = [set() for _ in range(workers)]
    for step in range(150):
        found = mine.batch(state, step, jnp.arange(size), size)
        np.testing.assert_array_equal(found.targets, LABELS[found.index])
        rows = np.arange(size) % (size // accumulation) // (size // accumulation // workers)
        np.testing.assert_array_equal(part[found.index], rows)
        for worker in range(workers):
            seen[worker] |= set(np.asarray(found.index)[rows == worker].tolist())
    assert [len(indices) for indices in seen] == [60] * workers
    # The control: other rows would belong to another worker.
    assert not np.array_equal(part[found.index], np.roll(rows, 1))


def test_parts_of_labels_are_equal_and_in_order():
    part = sampling.by_label(LABELS, workers=12)
    assert np.bincount(part).tolist() == [20] * 12
    for worker in range(11):
        assert LABELS[part == worker].max() <= LABELS[part == worker + 1].min()


def test_a_workers_rows_do_not_depend_on_which_others_are_asked_for():
    mine = sampling.divided(source(), sampling.by_label(LABELS, workers=4), workers=4)
    state = mine.init(jax.random.key(0))
    whole = mine.batch(state, 3, jnp.arange(16), 16)
    part = mine.batch(state, 3, jnp.arange(8, 12), 16)
    np.testing.assert_array_equal(part.index, whole.index[8:12])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="accumulation must be positive, got 0"):
        sampling.divided(source(), sampling.by_label(LABELS, workers=4), workers=4, accumulation=0)
    with pytest.raises(ValueError, match=r"workers must be in \[1, 240\], got 241"):
        sampling.by_label(LABELS, workers=241)
    mine = sampling.divided(source(), sampling.by_label(LABELS, workers=4), workers=4)
    with pytest.raises(ValueError, match="batch size must be a multiple of 4"):
        mine.batch(mine.init(jax.random.key(0)), 0, jnp.arange(6), 6)
