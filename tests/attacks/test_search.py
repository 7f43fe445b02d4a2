"""What drives a search: who draws what, what is wrong, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry
from jaxrobust.attacks.search import Randomized, begin, folded, misclassified, step

KEY = jax.random.key(0)
LINF = geometry.linf()


def listening(seen):
    """A model whose logits are its key's, the first one the largest, and that tells of every key that it is given."""

    def draw(keys, images):
        jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(keys))
        first = jnp.array([1.0, 0.0, 0.0]) + 0 * images.reshape(len(images), -1)[:, :3]
        return first + jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)

    return Randomized(draw)


SEARCHES = {
    "fab": (attacks.fab(LINF, 1e-6, steps=3, restarts=2), 2 * 3 * 2),
    "apgd": (attacks.apgd(LINF, 1e-6, steps=3, restarts=2, draws=2), 2 * 4 * 2),
    "square": (attacks.square(LINF, 1e-6, queries=4, restarts=2), 2 * 4),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_no_draw_is_seen_twice(name):
    """Neither in another step, run, draw or look, nor by the search itself, whose keys are of the same example."""
    search, questions = SEARCHES[name]
    keys, seen = jax.random.split(KEY, 2), []
    jax.block_until_ready(search(keys, listening(seen), jnp.full((2, 4), 0.5), jnp.zeros(2, jnp.int32)))
    jax.effects_barrier()
    assert len(seen) == 1 + questions
    distinct = {row.tobytes() for data in seen for row in data}
    assert len(distinct) == 2 * len(seen)
    # What each run of the search begins from, and the questions of Square.
    own = jax.vmap(jax.random.fold_in)(jnp.repeat(keys, 2), jnp.tile(jnp.arange(2), 2))
    used = [own, *(folded(own, number) for number in range(6))]
    assert not distinct & {row.tobytes() for each in used for row in np.asarray(jax.random.key_data(each))}


def test_an_answer_is_that_of_the_last_draw():
    """Gradients are means of the draws; logits and value are the last one's."""
    search = attacks.apgd(LINF, 0.1, steps=2, start=attacks.no_start, draws=3, loss=lambda logits, labels: logits[:, 0])
    keys, images, labels = jax.random.split(KEY, 2), jnp.full((2, 4), 0.5), jnp.zeros(2, jnp.int32)
    state = begin(search, keys, images, labels, jnp.zeros((2, 3)), labels)

    def keep(state, image, label, answer):
        kept = state.memory._replace(target=jnp.concatenate([answer.logits, answer.value[None]]))
        return state._replace(memory=kept)

    state = state._replace(memory=state.memory._replace(target=jnp.zeros((2, 4))))
    heard = dataclasses.replace(search, tell=keep)
    answer = step(heard, listening([]), keys, state, images, labels).memory.target
    last = listening([]).draw(folded(folded(keys, 0), 2), images)
    np.testing.assert_allclose(answer, jnp.concatenate([last, last[:, :1]], axis=1))


def test_labels_of_any_width():
    """Class 259 is not 3, though both are in eight bits."""
    logits = jnp.zeros((2, 300)).at[0, 259].set(1.0).at[1, 3].set(1.0)
    for dtype in (jnp.uint8, jnp.int16, jnp.int32):
        assert misclassified(logits, jnp.full(2, 3, dtype)).tolist() == [True, False]


@pytest.mark.parametrize("attack", [functools.partial(attacks.apgd, start=attacks.no_start), attacks.fab])
def test_where_a_gradient_is_not_finite_it_is_zero(attack):
    """Two pixels have slopes, one has none that is a number, and one's is infinite."""
    images, labels = jnp.tile(jnp.array([0.5, 0.5, 0.5, 0.0]), (3, 1)), jnp.zeros(3, jnp.int32)

    def logits(x):
        height = x[:, 0] - x[:, 1] + jnp.sqrt(0 * x[:, 2]) + jnp.sqrt(x[:, 3])
        return jnp.stack([0.1 + 0 * height, height], 1)

    slope = jax.grad(lambda x: logits(x).sum())(images)
    assert np.all(np.isfinite(slope[:, :2]))
    assert np.all(np.isnan(slope[:, 2]))
    assert not np.any(np.isfinite(slope[:, 3]))
    found = attack(LINF, 0.2, steps=10)(jax.random.split(KEY, 3), logits, images, labels)
    assert np.all(misclassified(logits(found), labels))
    np.testing.assert_array_equal(found[:, 2:], images[:, 2:])


def test_a_prediction_that_is_not_finite_is_wrong():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, jnp.nan], [jnp.inf, 0.0], [1.0, 0.0]])
    assert misclassified(logits, jnp.zeros(4, jnp.int32)).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": jnp.zeros(2)}, r"labels must be \[2\] integers, one for each image, got float32 of shape \(2,\)"),
        ({"labels": jnp.zeros(3, jnp.int32)}, r"labels must be \[2\] integers, .* of shape \(3,\)"),
        ({"logits_fn": lambda x: x[..., None]}, r"logits must be \[batch, class\] of 2 images, got \(2, 4, 1\)"),
        ({"start": jnp.zeros((3, 4))}, r"start must be images of shape \(2, 4\), got shape \(3, 4\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(change, message):
    given = {"logits_fn": lambda x: x, "labels": jnp.zeros(2, jnp.int32), "start": None, **change}
    search = attacks.apgd(LINF, 0.1, steps=2, start=given["start"])
    with pytest.raises(ValueError, match=message):
        search(KEY, given["logits_fn"], jnp.full((2, 4), 0.5), given["labels"])
