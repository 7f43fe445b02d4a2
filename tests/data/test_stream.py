import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data

LENGTH = 10
EXAMPLES = [{"image": np.full((2, 2, 1), i, np.uint8), "label": i % 3} for i in range(LENGTH)]


def taken(stream, steps, *, seed=0, start=0, size=4, processes=1):
    """The first batches from a step on, the processes' parts put together."""
    parts = [
        list(itertools.islice(stream.batches(seed, start, size, process, processes), steps))
        for process in range(processes)
    ]
    return [jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches) for batches in zip(*parts, strict=True)]


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


@pytest.mark.parametrize("threads", [0, 4])
def test_each_example_comes_once_an_epoch_as_it_is(threads):
    batches = taken(data.stream(EXAMPLES, threads=threads), 15)
    index = np.concatenate([batch.index for batch in batches]).reshape(6, LENGTH)
    assert all(sorted(epoch) == list(range(LENGTH)) for epoch in index)
    assert len({tuple(epoch) for epoch in index}) == 6
    for batch in batches:
        assert batch.inputs.dtype == np.uint8
        np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], batch.index)
        np.testing.assert_array_equal(batch.targets, batch.index % 3)
        np.testing.assert_array_equal(batch.weight, np.ones(4, np.float32))
        assert batch.targets.dtype == batch.index.dtype == np.int32


def test_order_depends_on_the_seed_and_not_on_the_processes():
    stream = data.stream(EXAMPLES)
    whole = taken(stream, 7)
    for processes in (2, 4):
        assert same(whole, taken(stream, 7, processes=processes))
    assert not same(whole, taken(stream, 7, seed=1))
    # The next seed must not be this one, an epoch later.
    epochs = [np.concatenate([b.index for b in taken(stream, 2, seed=s, size=LENGTH)]) for s in (0, 1)]
    assert not np.array_equal(epochs[0][LENGTH:], epochs[1][:LENGTH])


@pytest.mark.parametrize("start", [1, 3, 100])
def test_starting_at_a_step_is_skipping_to_it(start):
    stream = data.stream(EXAMPLES, threads=0)
    assert same(taken(stream, start + 3)[start:], taken(stream, 3, start=start))
    assert not same(taken(stream, start + 3)[start:], taken(stream, 3, start=start + 1))


def test_images_become_floats_on_the_device():
    stream = data.stream(EXAMPLES)
    batch = next(stream.batches(0, 0, 4, 0, 1))
    keys = jax.random.split(jax.random.key(0), 4)
    with jax.numpy_dtype_promotion("strict"):
        found = jax.jit(stream.finish)(keys, jnp.asarray(batch.inputs))
    assert found.dtype == jnp.float32
    np.testing.assert_array_max_ulp(np.asarray(found), batch.inputs / np.float32(255), 1)


def test_whole_batches_are_asked_for_at_once_where_they_can_be():
    class Counted(list):
        def __getitems__(self, index):
            asked.append(list(index))
            return [self[i] for i in index]

    asked = []
    stream = data.stream(Counted(EXAMPLES), threads=0)
    del asked[:]
    batch = next(stream.batches(0, 0, 4, 0, 1))
    assert asked == [batch.index.tolist()]
    assert same(batch, next(data.stream(EXAMPLES, threads=0).batches(0, 0, 4, 0, 1)))


def test_no_thread_is_left_behind():
    before = set(threading.enumerate())
    batches = data.stream(EXAMPLES, threads=4).batches(0, 0, 4, 0, 1)
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        ({"image": EXAMPLES[0]["image"], "label": 3}, "labels must lie below the 3 classes, got 3"),
        ({"image": EXAMPLES[0]["image"], "label": -1}, "labels must not be negative, got -1"),
        ({"image": np.zeros((2, 2, 2), np.uint8), "label": 0}, r"images must be of one shape, got \(2, 2, 1\) and"),
        ({"label": 0}, "examples have no 'image': they have label"),
    ],
)
def test_a_bad_example_is_refused_when_it_comes(threads, spoiled, said):
    stream = data.stream([*EXAMPLES[:-1], spoiled, EXAMPLES[0]], classes=3, fingerprint="", threads=threads)
    with pytest.raises(ValueError, match=said):
        list(itertools.islice(stream.batches(0, 0, 11, 0, 1), 1))


@pytest.mark.parametrize(
    ("examples", "options", "said"),
    [
        ([], {}, "examples must be at least one, got none"),
        (EXAMPLES, {"image": "picture"}, "examples have no 'picture': they have image, label"),
        ([7], {}, r"a mapping or a pair \(image, label\), got int"),
        ([(np.full((1, 1), 255.0), 0)], {}, r"images must lie in \[0, 1\], got a maximum of 255.0"),
        ([(np.zeros((1, 1)), 0.5)], {}, "labels must be integers, got float64"),
        (EXAMPLES, {"threads": -1}, "threads must be at least 0, got -1"),
        (EXAMPLES, {"prefetch": 0}, "prefetch must be positive, got 0"),
    ],
)
def test_bad_arguments_are_refused_at_once(examples, options, said):
    with pytest.raises(ValueError, match=said):
        data.stream(examples, **options)


def test_bad_calls_are_refused_at_once():
    stream = data.stream(EXAMPLES)
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\^32\), got -1"):
        stream.batches(-1, 0, 4, 0, 1)
    with pytest.raises(ValueError, match="size must be a multiple of the 3 processes, got 4"):
        stream.batches(0, 0, 4, 0, 3)


def test_the_fingerprint_tells_examples_apart():
    found = {data.stream(each).fingerprint for each in (EXAMPLES, EXAMPLES[:-1], EXAMPLES[::-1])}
    assert len(found) == 3
    assert data.stream(EXAMPLES, fingerprint="ab").fingerprint == "ab"
