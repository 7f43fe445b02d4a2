"""A frozen scikit-learn classifier of the digits, reached by queries alone, defended by a denoiser in front of it.

Paper: Zhang, Yao, Jia, Yi, Hong, Chang and Liu, "How to Robustify Black-Box ML Models? A Zeroth-Order Optimization
       Perspective", ICLR 2022, https://arxiv.org/abs/2203.14195 (estimates at an interface); and Chen et al.,
       "DeepZero", ICLR 2024, https://arxiv.org/abs/2310.02025, section 5 (sparse coordinates of the denoiser's
       weights). The loss, sigma, the smoothing and Adam are theirs; classifier, denoiser (4,192 parameters) and length
       are ours, sized for two cores.
Command: jaxrobust train configs/digits_black_box_defense.py --method interface
Expected: what python tests/benchmarks/black_box_defense.py RESULTS.jsonl prints for every method.
Device: two CPU cores. Time: one to four minutes, of which certifying takes one.

A query is one image that the classifier answers for. Every method may ask the same number of them in all; its steps are
what they pay for. The classifier is scikit-learn's `StandardScaler` and `MLPClassifier` with 64 hidden units, behind a
callback, which nothing differentiates. It was chosen without a denoiser, by held-out training examples: the majority of
ten noisy copies is right for nearly all of them where pixels are not scaled, and there would be little to defend.
"first_order" sees a copy of its weights in JAX and takes as many steps as "interface".
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxrobust import backprop, certification, data, models, objectives, train, zeroth_order

SHAPE, CLASSES, RADII = (8, 8, 1), 10, (0.0, 0.25, 0.5, 0.75)
RATES = {"none": 0.0, "random_directions": 1e-2, "interface": 1e-2, "sparse": 1e-2, "first_order": 1e-2}


def experiment(
    *,
    method: Literal["none", "random_directions", "interface", "sparse", "first_order"] = "interface",
    queries: int = 4_000_000,
    sigma: float = 0.25,
    stability: float = 1.0,
    directions: int = 64,
    coordinates: int = 64,
    smoothing: float = 5e-3,
    central: bool = False,
    samples: int = 10_000,
    examples: int = 359,
    held_out: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    learning_rate: float | None = None,
) -> train.Experiment:
    """A denoiser before a black box, certified with it.

    Args:
      method: "none" leaves the images noisy; "random_directions" moves all weights of the denoiser along some
        directions; "interface" moves each of the 64 numbers that enter the classifier, and backpropagation does the
        rest; "sparse" moves some weights, drawn anew in each step; "first_order" differentiates a copy.
      queries: images that the classifier answers for in training, over all steps.
      sigma: deviation of the noise.
      stability: weight of the cross-entropy beside the squared error.
      directions: of "random_directions", in each step.
      coordinates: weights that "sparse" moves in a step, of each layer its share and one at least.
      smoothing: of difference quotients, in weights or in pixels.
      central: whether quotients of coordinates are central, for twice the queries.
      samples: noisy copies behind each certificate.
      examples: how many of the test examples are certified, the first ones; all by default.
      held_out: whether every fifth training example is kept from classifier and denoiser, and certified in place of
        the test examples: for choices such as the learning rate.
      batch_size: examples of one update.
      seed: seed of parameters, data order, noise and directions.
      learning_rate: the first of Adam's cosine schedule; by default the best of a grid on held-out examples.
    """
    if central and method not in ("interface", "sparse"):
        raise ValueError(f"central is for the methods interface and sparse, got {method}: leave it out")
    rate = RATES[method] if learning_rate is None else learning_rate
    fitted, certified_on = splits_of(held_out)
    model, key = models.dense_denoiser((32,)), train.keys_of_run(seed).steps
    asked, estimator = slots_of(method, model, key, held_out, directions, coordinates, smoothing, central)
    steps = (
        1 if method == "none" else queries // (batch_size * queries_of(method, model, directions, coordinates, central))
    )
    if steps < 1:
        raise ValueError(f"queries must pay for one step of {batch_size} examples, got {queries}")
    evaluate = certification.certified(sigma, RADII, examples=examples, samples=samples)
    return train.Experiment(
        model=model,
        data=data.arrays(*fitted),
        test=data.arrays(*certified_on, shuffle=False),
        objective=objectives.denoised_smoothing(asked, sigma, stability=stability),
        gradient=estimator,
        optimizer=optax.set_to_zero() if method == "none" else optax.adam(optax.cosine_decay_schedule(rate, steps)),
        evaluate=certification.behind_denoiser(black_box(held_out), evaluate),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        log_every=50,
    )


def slots_of(method, model, key, held_out, directions, coordinates, smoothing, central):
    """The classifier as a method may see it, and the estimator of the denoiser's gradient."""
    if method in ("none", "first_order"):
        return copied(frozen(held_out)), backprop()
    box = black_box(held_out)
    if method == "interface":
        return zeroth_order.differentiable(box, zeroth_order.coordinate(smoothing, central)), backprop()
    if method == "random_directions":
        return box, zeroth_order.random_directions(directions, smoothing)
    # ZO-GraSP gives a layer that starts as zero the score 0, and would hardly look at the denoiser's last one.
    selection = zeroth_order.uniform_selection(share_of(model, coordinates), jax.random.fold_in(key, 1))
    return box, zeroth_order.coordinate(smoothing, central, selection=selection)


def queries_of(method, model, directions, coordinates, central):
    """Images that the classifier answers for, each example and step: two in `prepare`, one in the losses, quotients."""
    sides = 2 if central else 1
    if method == "random_directions":
        return 3 + directions
    if method == "sparse":
        share = share_of(model, coordinates)
        return 3 + sides * sum(max(1, round(share * size)) for size in sizes_of(model))
    # A forward quotient asks for the interface's first value once more, on the way back.
    return 3 + sides * int(np.prod(SHAPE)) + (not central)


def share_of(model, coordinates):
    """The share of each layer's weights that a step looks at."""
    return min(1.0, coordinates / sum(sizes_of(model)))


def sizes_of(model):
    """Numbers of parameters of the denoiser's leaves."""
    params, _ = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32))
    return [leaf.size for leaf in jax.tree.leaves(params)]


@functools.cache
def splits_of(held_out):
    """Images and labels to fit on, and those to certify."""
    (images, labels), test = (
        (np.asarray(state.images), np.asarray(state.labels))
        for state in (split.init(jax.random.key(0)) for split in data.digits())
    )
    if not held_out:
        return (images, labels), test
    kept = np.arange(len(images)) % 5 == 4
    return (images[~kept], labels[~kept]), (images[kept], labels[kept])


@functools.cache
def frozen(held_out):
    """The classifier, which nobody trains any more."""
    images, labels = splits_of(held_out)[0]
    network = make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=1000, random_state=0))
    return network.fit(images.reshape(len(images), -1).astype(np.float64), labels)


@functools.cache
def black_box(held_out):
    """The classifier behind a callback: log-probabilities `[class]` of an image, many in one call."""
    network, least = frozen(held_out), np.finfo(np.float64).tiny

    def answer(images):
        return np.log(np.maximum(network.predict_proba(images.reshape(len(images), -1)), least))

    return zeroth_order.black_box(answer, (CLASSES,), batched=True)


def copied(network):
    """The same function of the same weights, which JAX can differentiate."""
    scaler, mlp = network[0], network[1]
    mean, deviation = jnp.float32(scaler.mean_), jnp.float32(scaler.scale_)
    layers = [
        (jnp.float32(kernel), jnp.float32(bias)) for kernel, bias in zip(mlp.coefs_, mlp.intercepts_, strict=True)
    ]

    def classify(image):
        hidden = (image.reshape(-1) - mean) / deviation
        for kernel, bias in layers[:-1]:
            hidden = jax.nn.relu(hidden @ kernel + bias)
        return jax.nn.log_softmax(hidden @ layers[-1][0] + layers[-1][1])

    return classify
