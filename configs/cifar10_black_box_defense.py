"""A frozen network of CIFAR-10, reached by queries alone, defended by a denoiser in front of it.

Paper: Zhang, Yao, Jia, Yi, Hong, Chang and Liu, "How to Robustify Black-Box ML Models? A Zeroth-Order Optimization
       Perspective", ICLR 2022, https://arxiv.org/abs/2203.14195 (central quotients at an interface of 192 numbers, 192
       random directions); and Chen et al., "DeepZero", ICLR 2024, https://arxiv.org/abs/2310.02025, section 5 (1,152
       coordinates of the denoiser's weights). The loss, DnCNN with 17 convolutions of 64 channels, sigma, the
       smoothing, Adam at 1e-3 and the batch are theirs.
Command: jaxrobust train configs/cifar10_black_box_defense.py --data-dir DIRECTORY --method interface
Expected: not run at this size; configs/digits_black_box_defense.py is its small form, with figures.
Device: one accelerator for the denoiser; the black box answers on the host's cores, and most of the time is its own.

Where it differs: the black box is a network of two convolutions, trained here for some epochs and then frozen, in NumPy
behind a callback; the interface is that of a linear autoencoder (principal components of training images), where the
paper trains a convolutional one; steps are what a number of queries pays for, images that the black box answers for.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrobust import attacks, backprop, certification, data, models, objectives, train, zeroth_order

SHAPE, CLASSES, RADII = (32, 32, 3), 10, (0.0, 0.25, 0.5, 0.75)


def experiment(
    *,
    data_dir: str = "cifar10",
    method: Literal["none", "random_directions", "interface", "sparse", "first_order"] = "interface",
    queries: int = 200_000_000,
    sigma: float = 0.25,
    stability: float = 1.0,
    depth: int = 17,
    features: int = 64,
    components: int = 192,
    directions: int = 192,
    coordinates: int = 1152,
    smoothing: float = 5e-3,
    samples: int = 10_000,
    examples: int = 500,
    classifier_steps: int = 2000,
    batch_size: int = 256,
    seed: int = 0,
    learning_rate: float = 1e-3,
) -> train.Experiment:
    """A denoiser before a black box, certified with it.

    Args:
      data_dir: directory of CIFAR-10: the binary version, or `.npz` files.
      method: "none" leaves the images noisy; "random_directions" moves all weights of the denoiser along some
        directions; "interface" moves each number of a code between denoiser and classifier, and backpropagation does
        the rest; "sparse" moves some weights, drawn anew in each step; "first_order" differentiates a copy.
      queries: images that the classifier answers for in training, over all steps.
      sigma: deviation of the noise.
      stability: weight of the cross-entropy beside the squared error.
      depth: convolutions of the denoiser.
      features: channels between them.
      components: numbers of the interface.
      directions: of "random_directions", in each step.
      coordinates: weights that "sparse" moves in a step, of each layer its share and one at least.
      smoothing: of difference quotients.
      samples: noisy copies behind each certificate.
      examples: test images that are certified.
      classifier_steps: updates of the classifier before it is frozen.
      batch_size: examples of one update.
      seed: seed of the denoiser, data order, noise and directions; the classifier's is 0.
      learning_rate: the first of Adam's cosine schedule.
    """
    images, model = data.cifar10(data_dir), models.denoiser(depth, features)
    params = trained_classifier(images, classifier_steps)
    box = zeroth_order.black_box(lambda batch: logits_of(params, batch), (CLASSES,), batched=True)
    asked, answers, estimator, cost = box, box, backprop(), 3
    if method in ("none", "first_order"):
        asked = lambda image: NETWORK.apply(params, {}, image[None], train=False)[0][0]  # noqa: E731 - as in NumPy.
        cost = 3 + 2 * components
    elif method == "interface":
        encode, decode = linear_autoencoder(images.train, components)
        inner = zeroth_order.differentiable(
            lambda code: box(decode(code)), zeroth_order.coordinate(smoothing, central=True)
        )
        asked, answers = (lambda image: inner(encode(image))), (lambda image: box(decode(encode(image))))
        cost += 2 * components
    elif method == "random_directions":
        estimator, cost = zeroth_order.random_directions(directions, smoothing), cost + directions
    else:
        key, sizes = jax.random.fold_in(train.keys_of_run(seed).steps, 1), sizes_of(model)
        share = min(1.0, coordinates / sum(sizes))
        estimator = zeroth_order.coordinate(smoothing, selection=zeroth_order.uniform_selection(share, key))
        cost += sum(max(1, round(share * size)) for size in sizes)
    steps = 1 if method == "none" else queries // (batch_size * cost)
    if steps < 1:
        raise ValueError(f"queries must pay for one step, {batch_size * cost} of them, got {queries}")
    evaluate = certification.certified(sigma, RADII, examples=examples, samples=samples)
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    return train.Experiment(
        model=model,
        data=data.transformed(images.train, data.crop(4), data.flip()),
        test=images.test,
        objective=objectives.denoised_smoothing(asked, sigma, stability=stability),
        gradient=estimator,
        optimizer=optax.set_to_zero() if method == "none" else adam,
        evaluate=certification.behind_denoiser(answers, evaluate),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        log_every=10,
    )


NETWORK = models.small_cnn(CLASSES, (48, 96), patch=2, mean=models.CIFAR10_MEAN, std=models.CIFAR10_STD)


def trained_classifier(images, steps):
    """Parameters of the classifier, NumPy arrays."""
    experiment = train.Experiment(
        model=NETWORK,
        data=data.transformed(images.train, data.crop(4), data.flip()),
        optimizer=optax.sgd(optax.cosine_decay_schedule(0.1, steps), momentum=0.9),
        evaluate=attacks.accuracy(batch_size=500),
        steps=steps,
        batch_size=128,
        log_every=100,
    )
    fitted = train.fit(experiment)
    return jax.tree.map(np.asarray, fitted.state.params["model"])


def logits_of(params, images):
    """The same network in NumPy, which JAX cannot see into: `[n, 32, 32, 3]` to `[n, 10]`."""
    x = (images - np.float32(models.CIFAR10_MEAN)) / np.float32(models.CIFAR10_STD)
    count, height, width, channels = x.shape
    x = x.reshape(count, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(count, height // 2, width // 2, 4 * channels)
    for number in range(2):
        if number:
            x = x.reshape(count, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))
        layer = params[f"Conv_{number}"]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2))
        patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(*x.shape[:3], -1)
        x = np.maximum(patches @ layer["kernel"].reshape(-1, layer["kernel"].shape[-1]) + layer["bias"], 0)
    return x.reshape(count, -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


def linear_autoencoder(source, components, count=2000):
    """An image to its principal components, and back; those of some training images."""
    state, rows = source.init(jax.random.key(0)), jnp.arange(min(count, source.size))
    pixels = np.asarray(source.batch(state, 0, rows, source.size).inputs).reshape(len(rows), -1)
    mean = pixels.mean(0)
    basis = np.linalg.svd(pixels - mean, full_matrices=False)[2][:components]

    def encode(image):
        return (image.reshape(-1) - mean) @ basis.T

    def decode(code):
        return (mean + code @ basis).reshape(SHAPE)

    return encode, decode


def sizes_of(model):
    """Numbers of parameters of the denoiser's leaves."""
    params, _ = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32))
    return [leaf.size for leaf in jax.tree.leaves(params)]
