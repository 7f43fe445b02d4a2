"""Laws that every attack keeps in every geometry; a new attack is a new row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry
from jaxrobust.zeroth_order import random_directions

RADIUS = 0.15
BALLS = {
    "linf": geometry.linf(),
    "l2": geometry.l2(),
    "l1": geometry.l1(),
    "l3": geometry.lp(3.0),
    "fourier_linf": geometry.fourier_linf(),
}
# A member with every ball that it is tested in; whether it draws random numbers.
ROWS = {
    "apgd": (lambda ball, radius: attacks.apgd(ball, radius, steps=3), list(BALLS), True),
    "apgd_targets": (
        lambda ball, radius: attacks.apgd(ball, radius, steps=3, targets=2, start=attacks.no_start),
        ["linf"],
        False,
    ),
    "fgsm": (attacks.fgsm, ["linf"], False),
    "fgsm_uniform": (
        lambda ball, radius: attacks.fgsm(ball, radius, step_size=1.25 * radius, start=attacks.uniform_start),
        ["linf", "fourier_linf"],
        True,
    ),
    "fab": (lambda ball, radius: attacks.fab(ball, radius, steps=5, targets=2), ["linf"], False),
    "pgd": (lambda ball, radius: attacks.pgd(ball, radius, steps=2, start=attacks.no_start), list(BALLS), False),
    "pgd_uniform": (lambda ball, radius: attacks.pgd(ball, radius, steps=2), ["linf"], True),
    "pgd_gaussian": (
        lambda ball, radius: attacks.pgd(
            ball, radius, steps=2, step_size=0.5, start=attacks.gaussian_start(1.0), loss=attacks.losses.margin
        ),
        ["l2"],
        True,
    ),
    "pgd_restarts": (lambda ball, radius: attacks.pgd(ball, radius, steps=1, restarts=2), ["linf"], True),
    "pgd_black_box": (
        lambda ball, radius: attacks.pgd(ball, radius, steps=2, gradient=random_directions(directions=3)),
        ["linf"],
        True,
    ),
    "square": (
        lambda ball, radius: attacks.square(ball, radius, queries=20, first_share=0.2),
        ["linf", "l2", "l1"],
        True,
    ),
}
KEYS = jax.random.split(jax.random.key(0), 6)


def feasible(found, images, norm, radius):
    """In [0, 1] and in the ball; in the Fourier geometry up to the rounding of a pixel's sum."""
    delta = np.asarray(found, np.float64) - np.asarray(images, np.float64)
    slack = 2.0**-24 * 4
    sizes = {
        "linf": lambda x: np.abs(x).max(),
        "l2": np.linalg.norm,
        "l1": lambda x: np.abs(x).sum(),
        "l3": lambda x: np.linalg.norm(x.ravel(), 3),
        "fourier_linf": lambda x: np.abs(np.fft.fft2(x, axes=(0, 1), norm="ortho")).max() - slack,
    }
    within = all(sizes[norm](each) <= radius * (1 + 1e-6) for each in delta)
    return within and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize(("member", "ball"), [(member, ball) for member, row in ROWS.items() for ball in row[1]])
def test_results_are_feasible_and_each_depends_on_its_own_example(member, ball, images, labels, curved):
    build, _, random = ROWS[member]
    attack = build(BALLS[ball], RADIUS)
    run = jax.jit(lambda keys, images, labels: attack(keys, curved, images, labels))
    found = np.asarray(run(KEYS, images, labels))
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    assert feasible(found, images, ball, RADIUS)
    assert not np.allclose(found, images, atol=1e-3)
    # A larger ball, and a step that was not clipped: the check sees both.
    assert not feasible(images + 1.01 * (found - images), images, ball, RADIUS)
    assert not feasible(images + 0.1 * np.sign(images - 0.5), images, "linf", RADIUS)

    order = np.array([3, 0, 5, 1, 4, 2])
    moved = run(KEYS[order], images[order], labels[order])
    np.testing.assert_allclose(moved, found[order], atol=1e-5)
    elsewhere = run(KEYS, images[order], labels[order])
    assert np.allclose(elsewhere, found[order], atol=1e-5) != random


def test_one_key_is_folded_with_each_position(images, labels, curved):
    attack = ROWS["fgsm_uniform"][0](BALLS["linf"], RADIUS)
    run = jax.jit(lambda keys: attack(keys, curved, images, labels))
    key = jax.random.key(3)
    folded = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(6))
    np.testing.assert_array_equal(run(key), run(folded))
    assert not np.array_equal(run(key), run(folded[::-1]))


@pytest.mark.parametrize("member", [name for name in ROWS if name != "pgd_gaussian"])
def test_a_radius_of_zero_changes_nothing(member, images, labels, curved):
    found = ROWS[member][0](BALLS["linf"], 0.0)(jax.random.key(0), curved, images, labels)
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("member", ROWS)
def test_a_negative_radius_is_refused(member):
    with pytest.raises(ValueError, match=r"radius must not be negative, got -1\.0"):
        ROWS[member][0](BALLS["linf"], -1.0)


@pytest.mark.parametrize("member", ROWS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": lambda images: (255 * images).astype(jnp.uint8)}, "images must be floating point in .*, got uint8"),
        ({"images": lambda x: x[0, 0, 0], "labels": lambda labels: labels[0]}, r"are images \[batch, \.\.\.\]"),
        ({"key": lambda key: 7}, "keys must be one key or 6, such as"),
    ],
)
def test_what_is_no_batch_is_refused(member, change, message, images, labels):
    def logits_fn(images):
        return jnp.stack([jnp.sum(images, axis=tuple(range(1, images.ndim)))] * 3, -1) if images.ndim > 1 else images

    given = {"key": jax.random.key(0), "images": images, "labels": labels}
    given |= {name: function(given[name]) for name, function in change.items()}
    with pytest.raises(ValueError, match=message):
        ROWS[member][0](BALLS["linf"], RADIUS)(given["key"], logits_fn, given["images"], given["labels"])


@pytest.mark.parametrize("member", ROWS)
def test_no_examples_are_no_work(member, images, labels, curved):
    found = ROWS[member][0](BALLS["linf"], RADIUS)(jax.random.key(0), curved, images[:0], labels[:0])
    assert found.shape == (0, *images.shape[1:])
