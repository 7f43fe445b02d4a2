"""Both configurations of the black-box defense: what a method asks is what it says, and a copy answers as its box."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data, train
from jaxrobust.train.configuration import load_function
from jaxrobust.train.step import keys_of_run

CONFIGS = Path(__file__).parents[1] / "configs"
DIGITS, CIFAR10 = (load_function(CONFIGS / f"{name}_black_box_defense.py")[0] for name in ("digits", "cifar10"))
TINY = {"depth": 3, "features": 2, "components": 3, "directions": 2, "coordinates": 4, "classifier_steps": 1}


def after(experiment, steps):
    """State and metrics of the last of some steps, on one device."""
    trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1]))
    state, reduction = trainer.init()
    source = trainer.place(experiment.data.init(keys_of_run(0).data))
    for _ in range(steps):
        state, reduction, metrics = trainer.step(state, reduction, source, ())
    return state, {name: float(value) for name, value in metrics.items()}


def length(state):
    """Of the denoiser's last kernel, which starts as zero."""
    layers = state.params["model"]
    return float(jnp.linalg.norm(layers[max(layers)]["kernel"]))


@pytest.mark.parametrize(
    "method",
    [
        "interface",
        "sparse",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("none", "random_directions", "first_order")),
    ],
)
def test_digits_ask_as_often_as_the_budget_is_divided_by(method):
    flags = {"directions": 3, "coordinates": 20, "queries": 300, "batch_size": 4}
    experiment, box = DIGITS(method=method, **flags), DIGITS.__globals__["black_box"](False)
    before = box.queries
    state, metrics = after(experiment, experiment.steps)
    cost = {"none": 0, "first_order": 0, "random_directions": 6, "interface": 68, "sparse": 3 + 1 + 10 + 1 + 10}[method]
    steps = {"none": 1, "random_directions": 12, "sparse": 3}.get(method, 1)
    assert (experiment.steps, box.queries - before) == (steps, 4 * cost * steps)
    assert metrics["answered"] == 1
    assert (length(state) > 0) == (method != "none")


def test_a_budget_that_pays_for_no_step_is_refused():
    with pytest.raises(ValueError, match="queries must pay for one step of 64 examples, got 100"):
        DIGITS(queries=100)


def test_central_quotients_of_directions_are_refused():
    with pytest.raises(ValueError, match="central is for the methods interface and sparse, got random_directions"):
        DIGITS(method="random_directions", central=True)


def test_the_digits_copy_answers_as_its_box():
    images = jax.random.uniform(jax.random.key(0), (20, 8, 8, 1))
    box, copied, frozen = (DIGITS.__globals__[name] for name in ("black_box", "copied", "frozen"))
    np.testing.assert_allclose(jax.vmap(copied(frozen(False)))(images), jax.vmap(box(False))(images), atol=2e-4)


def test_held_out_examples_are_neither_trained_on_nor_known_to_the_box():
    experiment, whole = DIGITS(held_out=True, queries=10_000), DIGITS(queries=10_000)
    fitted, held = (
        {image.tobytes() for image in np.asarray(part.init(jax.random.key(0)).images)}
        for part in (experiment.data, experiment.test)
    )
    test = {image.tobytes() for image in np.asarray(whole.test.init(jax.random.key(0)).images)}
    assert not fitted & held
    assert not test & (fitted | held)
    assert (experiment.data.size, experiment.test.size, whole.data.size, whole.test.size) == (1151, 287, 1438, 359)
    globals_of = DIGITS.__globals__
    assert globals_of["frozen"](True) is not globals_of["frozen"](False)
    assert globals_of["frozen"](True)[-1].t_ % experiment.data.size == 0


def test_digits_are_certified_behind_the_denoiser():
    experiment = DIGITS(method="none", sigma=0.01, samples=20, examples=6)
    found = experiment.evaluate(jax.random.key(0), lambda images: images, experiment.test)
    blank = experiment.evaluate(jax.random.key(0), jnp.zeros_like, experiment.test)
    assert list(found.curve) == [0.0, 0.25, 0.5, 0.75]
    assert found.metrics["certified"] > blank.metrics["certified"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Random images in the files of CIFAR-10."""
    directory, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 256), ("test", 4)):
        pixels = draws.integers(0, 256, (count, 32, 32, 3), np.uint8)
        np.savez(directory / f"{split}.npz", image=pixels, label=(np.arange(count) % 10).astype(np.uint8))
    return str(directory)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "random_directions", "interface", "sparse", "first_order"])
def test_cifar10_takes_a_step(method, images):
    experiment = CIFAR10(data_dir=images, method=method, batch_size=2, queries=100, samples=4, examples=1, **TINY)
    state, metrics = after(experiment, 1)
    assert metrics["answered"] == 1
    assert metrics["denoising_error"] == pytest.approx(0.25**2 * 3072, rel=0.1)
    assert (length(state) > 0) == (method != "none")


def test_the_frozen_network_of_cifar10_is_the_same_in_numpy():
    network, logits_of = CIFAR10.__globals__["NETWORK"], CIFAR10.__globals__["logits_of"]
    batch = jax.random.uniform(jax.random.key(0), (3, 32, 32, 3))
    params, _ = network.init(jax.random.key(1), batch)
    params = jax.tree.map(lambda leaf: np.asarray(leaf + 0.01), params)
    found = logits_of(params, np.asarray(batch))
    np.testing.assert_allclose(found, network.apply(params, {}, batch, train=False)[0], rtol=1e-3, atol=1e-3)


def test_the_linear_autoencoder_keeps_its_components():
    rng = np.random.default_rng(0)
    codes, basis = rng.standard_normal((50, 2)), np.linalg.qr(rng.standard_normal((3072, 2)))[0].T
    pixels = np.float32(0.5 + 0.1 * codes @ basis)
    source = data.arrays(pixels.reshape(50, 32, 32, 3), np.zeros(50, int), shuffle=False)
    encode, decode = CIFAR10.__globals__["linear_autoencoder"](source, 2)
    image = jnp.asarray(pixels[7]).reshape(32, 32, 3)
    assert encode(image).shape == (2,)
    np.testing.assert_allclose(decode(encode(image)), image, atol=1e-5)
    fewer = CIFAR10.__globals__["linear_autoencoder"](source, 1)
    assert jnp.max(jnp.abs(fewer[1](fewer[0](image)) - image)) > 1e-4
