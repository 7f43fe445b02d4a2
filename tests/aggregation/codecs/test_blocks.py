"""A very long vector is rounded block by block, and read a few workers at a time: nothing else changes."""

import jax
import numpy as np
import pytest

from jaxrobust.aggregation import all_reduce, codecs
from jaxrobust.aggregation import all_reduce as reduction
from jaxrobust.aggregation.codecs import quantization

BUCKET = 8
KEY = jax.random.key(0)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of eight buckets, for whatever is longer than sixteen."""
    monkeypatch.setattr(quantization, "BLOCK", 8 * BUCKET)
    monkeypatch.setattr(quantization, "LONG", 16 * BUCKET)
    monkeypatch.setattr(quantization, "SHORT", 0)


def message(codec, length):
    x = np.random.default_rng(length).standard_normal(length, np.float32)
    return jax.jit(lambda x: codec.encode(KEY, x, codec.init(length))[0])(x)


# Whole blocks; a bucket and a ragged end over; too short for blocks, with a ragged end.
@pytest.mark.parametrize("length", [1024, 1039, 103])
def test_blocks_change_no_code(length, request):
    codec = codecs.qsgd_inf(3, BUCKET)
    whole = message(codec, length)
    request.getfixturevalue("small_blocks")
    blocks = message(codec, length)
    np.testing.assert_array_equal(whole.codes, blocks.codes)
    np.testing.assert_array_equal(whole.scale, blocks.scale)


def test_the_comparison_sees_draws_of_another_block(small_blocks, monkeypatch):
    codec = codecs.qsgd_inf(3, BUCKET)
    right = message(codec, 1024)
    draws = quantization.uniform_lanes
    monkeypatch.setattr(quantization, "uniform_lanes", lambda key, *shape, first: draws(key, *shape, first=0))
    assert np.any(np.asarray(message(codec, 1024).codes) != right.codes)


def test_messages_read_a_few_at_a_time_give_the_same_average(monkeypatch):
    codec, workers = codecs.qsgd_inf(4, BUCKET), 11
    gradients = np.random.default_rng(1).standard_normal((workers, 500), np.float32)
    reduce = all_reduce("data", codec=codec, broadcast_codec=codec, key=KEY)

    def reduced():
        state = reduce.init(gradients[0])
        step = jax.vmap(reduce.update, in_axes=(0, None), axis_name="data")
        return np.asarray(jax.jit(lambda rows: step(rows, state)[0])(gradients))

    module = __import__(reduction.__module__, fromlist=["LONG"])
    monkeypatch.setattr(module, "LONG", 10**9)
    at_once = reduced()
    monkeypatch.setattr(module, "LONG", 10)
    np.testing.assert_array_equal(at_once, reduced())
    assert len(np.unique(at_once[0])) > 100
