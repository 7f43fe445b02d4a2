"""The reference's small networks, data and traces, as channels-last arrays; its README says what each is."""

import jax
import jax.numpy as jnp
import numpy as np


def model(shared, name, dtype="float64"):
    """Logits `[batch, 10]` of images `[batch, 8, 8, 1]`, with 200 images and labels; name is "std" or "at".

    The function is a pytree of its weights: given to a compiled program, both networks share it.
    """
    stored = np.load(shared / "golden" / "autoattack" / f"{name}_model.npz")
    weights = {key[2:]: jnp.asarray(stored[key], dtype) for key in stored if key.startswith("w.")}
    images = jnp.asarray(stored["images"].transpose(0, 2, 3, 1), dtype)
    return jax.tree_util.Partial(_logits, weights), images, jnp.asarray(stored["labels"], int)


def traces(shared, name, norm):
    """The numbers of one network in one norm ("Linf", "L2" or "L1"): images as `[..., 8, 8, 1]`, all else as stored."""
    stored = np.load(shared / "golden" / "autoattack" / f"{name}_{norm}.npz")
    return {
        key: np.moveaxis(stored[key], -3, -1) if stored[key].shape[-3:] == (1, 8, 8) else stored[key] for key in stored
    }


def pieces(shared):
    """Projections and Square's schedule and bumps, as stored."""
    return dict(np.load(shared / "golden" / "autoattack" / "pieces.npz"))


def _logits(weights, images):
    def convolve(x, layer, stride):
        """As one product of all nine shifts: XLA's CPU convolutions are slow inside a loop, most of all in 64 bits."""
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifts = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
        kernel = weights[f"{layer}.weight"].transpose(2, 3, 1, 0)
        product = jnp.concatenate(shifts, -1) @ kernel.reshape(-1, kernel.shape[-1])
        return jax.nn.relu(product + weights[f"{layer}.bias"])

    def dense(x, layer):
        return x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]

    features = convolve(convolve(images, "conv1", 1), "conv2", 2).transpose(0, 3, 1, 2)
    return dense(jax.nn.relu(dense(features.reshape(len(images), -1), "fc1")), "fc2")
