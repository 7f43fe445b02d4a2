"""Projected gradient ascent: closed forms on linear models, black boxes, restarts."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry
from jaxrobust.attacks.pgd import per_example_keys, repeat
from jaxrobust.typing import Estimate, Estimator

RADIUS = 0.05
BALLS = {
    "linf": geometry.linf(),
    "l2": geometry.l2(),
    "l1": geometry.l1(),
    "l3": geometry.lp(3.0),
    "fourier_linf": geometry.fourier_linf(),
}
KEY = jax.random.key(0)


def linear(weight):
    """Two classes; class 1 gains where an image follows the weight."""

    def logits_fn(images):
        score = jnp.sum(images * weight, axis=(1, 2, 3))
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    return logits_fn


def coordinate_differences(sign=1.0):
    """Central differences along each coordinate, of the mean."""

    def estimate(key, value_fn, params, state):
        del key
        flat = params.reshape(-1)

        def value(x):
            return jnp.mean(value_fn(x.reshape(params.shape))[0])

        steps = 1e-4 * jnp.eye(flat.size, dtype=flat.dtype)
        slopes = jax.lax.map(lambda h: (value(flat + h) - value(flat - h)) / 2e-4, steps)
        return Estimate(value(flat), sign * slopes.reshape(params.shape), jnp.int32(2 * flat.size + 1), None, state)

    return Estimator(init=lambda params: (), estimate=estimate)


@pytest.mark.parametrize("ball", BALLS)
def test_the_optimum_on_a_linear_model(ball, x64):
    g = BALLS[ball]
    rng = np.random.default_rng(0)
    weight, images = jnp.asarray(rng.standard_normal((4, 4, 2))), jnp.asarray(rng.uniform(0.4, 0.6, (3, 4, 4, 2)))
    labels = jnp.array([1, 1, 0])
    side = jnp.where(labels == 1, 1.0, -1.0)
    best = RADIUS * g.dual_norm(weight)

    def run(steps, step_size, loss=attacks.losses.cross_entropy):
        attack = attacks.pgd(g, RADIUS, steps=steps, step_size=step_size, loss=loss, start=attacks.no_start)
        return attack(KEY, linear(weight), images, labels)

    def away(logits, labels):
        return -attacks.losses.cross_entropy(logits, labels)

    def gain(found):
        """How far the score moved against the label."""
        return side * jnp.sum((images - found) * weight, axis=(1, 2, 3))

    exact, beyond, short, wrong = jax.jit(
        lambda: (run(2, RADIUS / 2), run(2, RADIUS), run(2, RADIUS / 4), run(1, RADIUS, away))
    )()
    expected = images - side[:, None, None, None] * RADIUS * g.steepest(weight)
    np.testing.assert_allclose(exact, expected, atol=1e-7)
    np.testing.assert_allclose(gain(exact), best, rtol=1e-6)
    # Steps that end short of the sphere, and steps the wrong way.
    np.testing.assert_allclose(gain(short), 0.5 * best, rtol=1e-6)
    np.testing.assert_allclose(gain(wrong), -best, rtol=1e-6)
    # In l3 the Euclidean projection of a longer step is not the maximizer.
    assert np.allclose(gain(beyond), best, rtol=1e-6) == (ball != "l3")
    assert np.all(gain(beyond) > 0.95 * best)


def test_the_sign_of_the_weight_from_any_start():
    weight = jax.random.normal(KEY, (4, 4, 2))
    images = jax.random.uniform(jax.random.key(1), (3, 4, 4, 2))
    attack = attacks.pgd(geometry.linf(), RADIUS, steps=2)
    found = jax.jit(lambda: attack(KEY, linear(weight), images, jnp.ones(3, jnp.int32)))()
    expected = jnp.clip(images - RADIUS * jnp.sign(weight), 0, 1)
    np.testing.assert_allclose(found, expected, atol=2e-7)
    assert not np.allclose(found, images - RADIUS * jnp.sign(weight), atol=2e-7)


def test_more_steps_are_stronger_and_the_wrong_way_is_weaker(images, labels, curved):
    def loss(logits, labels):
        return labels["sign"] * attacks.losses.cross_entropy(logits, labels["class"])

    def height(run, sign=1.0):
        found = run({"class": labels, "sign": jnp.full(6, sign)})
        return attacks.losses.cross_entropy(curved(found), labels).mean()

    options = {"step_size": RADIUS / 3, "loss": loss, "start": attacks.no_start}
    one, many = (attacks.pgd(geometry.linf(), RADIUS, steps=steps, **options) for steps in (1, 8))
    run = jax.jit(lambda labels: many(KEY, curved, images, labels))
    clean = attacks.losses.cross_entropy(curved(images), labels).mean()
    assert height(run) > height(lambda labels: one(KEY, curved, images, labels)) > clean
    assert height(run, sign=-1.0) < clean


def test_restarts_keep_the_highest_loss(images, labels, curved):
    keys = jax.random.split(KEY, 6)

    def heights(restarts):
        attack = attacks.pgd(geometry.linf(), 0.3, steps=1, restarts=restarts)
        return jax.jit(lambda keys: attacks.losses.cross_entropy(attack_logits(attack, keys), labels))

    def attack_logits(attack, keys):
        return curved(attack(keys, curved, images, labels))

    single = heights(1)
    singly = jnp.stack([single(jax.vmap(jax.random.fold_in, (0, None))(keys, i)) for i in range(3)])
    np.testing.assert_allclose(heights(3)(keys), singly.max(0), rtol=1e-5)
    assert not np.allclose(singly.min(0), singly.max(0), rtol=1e-3)


def test_a_black_box_climbs_as_the_gradient_does(images, labels, curved, x64):
    images = images.astype(jnp.float64)

    def run(**gradient):
        attack = attacks.pgd(geometry.l2(), 0.5, steps=2, start=attacks.no_start, **gradient)
        return jax.jit(lambda: attack(KEY, curved, images, labels))()

    exact = run()
    np.testing.assert_allclose(run(gradient=coordinate_differences()), exact, atol=1e-5)
    assert not np.allclose(run(gradient=coordinate_differences(sign=-1.0)), exact, atol=1e-2)


def test_labels_are_any_pytree(images, labels, curved):
    def loss(logits, labels):
        return labels["scale"] * attacks.losses.cross_entropy(logits, labels["class"])

    rich = {"class": labels, "scale": jnp.ones(6)}
    options = {"steps": 1, "start": attacks.no_start}
    expected = attacks.pgd(geometry.linf(), RADIUS, **options)(KEY, curved, images, labels)
    for gradient in (None, coordinate_differences()):
        attack = attacks.pgd(geometry.linf(), RADIUS, loss=loss, gradient=gradient, **options)
        run = jax.jit(lambda labels: attack(KEY, curved, images, labels))  # noqa: B023
        np.testing.assert_allclose(run(rich), expected, atol=1e-6)
        assert not np.allclose(run({**rich, "scale": -jnp.ones(6)}), expected, atol=1e-3)


def test_jit_changes_nothing_and_traces_once(images, labels, curved):
    attack = attacks.pgd(geometry.linf(), RADIUS, steps=1)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(keys, images, labels):
        return attack(keys, curved, images, labels)

    keys = jax.random.split(KEY, 6)
    np.testing.assert_allclose(run(keys, images, labels), attack(keys, curved, images, labels), atol=1e-6)
    run(keys[::-1], images[::-1], labels)
    with pytest.raises(AssertionError, match="traced"):
        run(keys[:3], images[:3], labels[:3])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(dtype, images, labels, curved, x64):
    attack = attacks.pgd(geometry.linf(), RADIUS, steps=1)
    assert jax.eval_shape(lambda x: attack(KEY, curved, x, labels), images.astype(dtype)).dtype == dtype


def test_repeat_is_a_loop():
    def function(carry):
        return {"x": 2 * carry["x"] + 1, "key": jax.random.split(carry["key"])[0]}

    start = {"x": jnp.float32(1), "key": KEY}
    assert repeat(function, start, 5)["x"] == 63
    assert repeat(function, start, 4)["x"] != 63


def test_only_convolutions_are_written_out_and_only_on_a_cpu():
    """However deep the convolution hides; a loop of anything else stays a loop."""
    kernel, image = jnp.ones((3, 3, 1, 1)), jnp.ones((1, 6, 6, 1))

    def convolve(x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    @jax.custom_vjp
    def custom(x):
        return convolve(x)

    custom.defvjp(lambda x: (custom(x), None), lambda _, g: (g,))
    hidden = {
        "plain": convolve,
        "jit": jax.jit(convolve),
        "scan": lambda x: jax.lax.scan(lambda c, _: (convolve(c), None), x, length=2)[0],
        "cond": lambda x: jax.lax.cond(True, convolve, lambda y: y, x),
        "custom_vjp": custom,
        "remat": jax.checkpoint(convolve),
        "gradient": jax.grad(lambda x: jnp.sum(convolve(x) ** 2)),
    }

    def chooses(function):
        """Whether the program asks what platform it runs on."""
        return "platform_index" in str(jax.make_jaxpr(lambda x: repeat(function, x, 3))(image))

    for name, function in hidden.items():
        assert chooses(function), name
    assert not chooses(lambda x: (x.reshape(6, 6) @ jnp.ones((6, 6))).reshape(1, 6, 6, 1))
    assert not chooses(jax.jit(jnp.sin))


def test_the_default_step_is_two_and_a_half_radii_over_the_steps():
    """A peak at 0.56: from 0.5 by steps of 0.0625 past it and back, by steps of 0.05 past it in the second one."""

    def ends(**options):
        attack = attacks.pgd(geometry.linf(), 0.1, steps=4, start=attacks.no_start, loss=peak, **options)
        return float(attack(KEY, lambda x: x, jnp.full((1, 1), 0.5), jnp.zeros(1, jnp.int32))[0, 0])

    def peak(logits, labels):
        del labels
        return -((logits[:, 0] - 0.56) ** 2)

    np.testing.assert_allclose(ends(), 0.5, atol=1e-6)
    np.testing.assert_allclose(ends(step_size=0.05), 0.6, atol=1e-6)


def test_keys_are_counted():
    with pytest.raises(ValueError, match=r"keys must be one key or 3, such as jax\.random\.key\(0\), got 7"):
        per_example_keys(7, 3)
    assert per_example_keys(KEY, 3).shape == (3,)
    with pytest.raises(ValueError, match=r"keys must be one key or 3, got shape \(2,\)"):
        per_example_keys(jax.random.split(KEY), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": float("nan")}, "radius must not be negative, got nan"),
        ({"radius": math.inf}, "radius must be finite, got inf"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be positive, got 0.0"),
        ({"step_size": -0.1}, "step_size must be positive, got -0.1"),
        ({"restarts": 2, "start": attacks.no_start}, "restarts must be 1 without a random start, got 2"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.pgd(geometry.linf(), **{"radius": 0.1, "steps": 5, **options})
