"""Error feedback: messages add up to what was meant, and memories stay bounded where the codec is a contraction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import codecs

DIMENSION, STEPS = 256, 200


def run(codec, steps=STEPS, sick=None):
    shared, own = codec.init(DIMENSION)
    xs = np.random.default_rng(0).standard_t(3, (steps, DIMENSION)).astype(np.float32)
    if sick is not None:
        xs[sick] = np.nan

    def one(own, given):
        number, x = given
        wire, own = codec.encode(jax.random.fold_in(jax.random.key(0), number), x, (shared, own))
        return own, (codec.decode(wire, shared)[:DIMENSION], jnp.linalg.norm(own[0]) if own else 0.0)

    own, (sent, sizes) = jax.jit(lambda: jax.lax.scan(one, own, (jnp.arange(steps), xs)))()
    return xs, np.asarray(sent), own, np.asarray(sizes)


@pytest.mark.parametrize("codec", [codecs.sign(32), codecs.ternary(32), codecs.qsgd(2, 64)])
def test_messages_and_memory_add_up_to_the_vectors(codec):
    xs, sent, own, _ = run(codecs.error_feedback(codec, relative_variance=4.0))
    np.testing.assert_allclose(sent.sum(0) + own[0], xs.sum(0), atol=1e-2)
    assert not np.allclose(sent.sum(0), xs.sum(0), atol=1e-2)
    # Without a memory signs do not add up.
    if codec.bucket_size == 32:
        _, plain, *_ = run(codec)
        assert np.linalg.norm(plain.sum(0) - xs.sum(0)) > np.linalg.norm(sent.sum(0) - xs.sum(0)) * 0.5


def test_the_scaled_sign_contracts_by_its_formula():
    x = np.random.default_rng(1).normal(size=DIMENSION).astype(np.float32)
    codec = codecs.error_feedback(codecs.sign(DIMENSION))
    _, own = codec.encode(jax.random.key(0), x, codec.init(DIMENSION))
    delta = np.abs(x).sum() ** 2 / (DIMENSION * (x**2).sum())
    np.testing.assert_allclose((np.asarray(own[0]) ** 2).sum(), (1 - delta) * (x**2).sum(), rtol=1e-4)


def test_a_large_variance_diverges_unless_it_is_scaled():
    # Relative variance of about 16 at buckets of 256: every step multiplies the memory by four.
    coarse = codecs.qsgd(2, DIMENSION)
    *_, wild = run(codecs.error_feedback(coarse), steps=40)
    *_, tame = run(codecs.error_feedback(coarse, relative_variance=16.0))
    assert wild[-1] > 1e6
    assert tame[-1] < 1e4
    assert tame[-50:].mean() < 2 * tame[50:100].mean()


def test_a_vector_that_is_not_finite_leaves_the_memory_as_it_was():
    _, sent, own, sizes = run(codecs.error_feedback(codecs.sign(32)), steps=6, sick=3)
    assert np.isnan(sent[3]).all()
    assert np.isfinite(np.asarray(own[0])).all()
    assert sizes[3] == sizes[2] != sizes[1]
    assert np.isfinite(sent[4]).all()


def test_one_bad_number_keeps_the_whole_memory():
    """The reduction leaves the whole vector out, so that no bucket of it was sent."""
    codec = codecs.error_feedback(codecs.sign(4))
    before = jnp.arange(8.0)
    shared, (_, own) = codec.init(8)
    x = jnp.array([jnp.nan, 1.0, 1.0, 1.0, 1.0, -3.0, 2.0, 5.0])
    _, (after, _) = codec.encode(jax.random.key(0), x, (shared, (before, own)))
    np.testing.assert_array_equal(after, before)
    _, (moved, _) = codec.encode(jax.random.key(0), x.at[0].set(1.0), (shared, (before, own)))
    assert not np.array_equal(moved, before)
