"""Activation-wise estimation: backprop's gradient from one query a unit, on networks as they are."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrobust import geometry, models, objectives
from jaxrobust.typing import Batch
from jaxrobust.zeroth_order import activation, coordinate
from jaxrobust.zeroth_order.activation import probes

# Six queries tell up to twenty examples apart, and one moves nobody.
KEY, SIZE, PROBE = jax.random.key(0), 12, 6 + 1
IMAGES = jax.random.uniform(jax.random.key(1), (SIZE, 6, 6, 2))
LABELS = jnp.arange(SIZE) % 4


class Residual(nn.Module):
    """Two branches of convolutions, batch norm in evaluation mode, a cast, remat."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs, train=False):
        x = nn.Conv(4, (3, 3), dtype=self.dtype)(inputs.astype(self.dtype))
        x = nn.tanh(nn.BatchNorm(use_running_average=True, dtype=self.dtype)(x))
        y = nn.remat(nn.Conv)(8, (3, 3), strides=2, use_bias=False, dtype=self.dtype)(x)
        x = nn.tanh(y + nn.Conv(8, (1, 1), strides=2, use_bias=False, dtype=self.dtype)(x))
        return nn.Dense(4)(nn.silu(nn.Dense(6, dtype=self.dtype)(x.mean((1, 2)))).astype(jnp.float32))


def linen(module):
    with jax.numpy_dtype_promotion("standard"):
        variables = jax.jit(module.init)(KEY, IMAGES)
    rest = {name: value for name, value in variables.items() if name != "params"}

    def logits(params, images):
        with jax.numpy_dtype_promotion("standard"):
            return module.apply({"params": params, **rest}, images)

    return variables["params"], logits


def nnx_network():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(72, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)

        def __call__(self, images, train=False):
            return self.second(nnx.relu(self.first(images.reshape(len(images), -1))))

    model = models.nnx(lambda rngs: Network(rngs))
    params, state = model.init(KEY, IMAGES)
    return params, lambda params, images: model.apply(params, state, images, train=False)[0]


def plain():
    params = {"w": 0.1 * jax.random.normal(KEY, (72, 5)), "v": jax.random.normal(KEY, (5, 4)), "s": jnp.ones(5)}
    return params, lambda p, images: jnp.tanh(images.reshape(len(images), -1) @ p["w"]) * p["s"] @ p["v"]


NETWORKS = {
    "residual": lambda: linen(Residual()),
    "casts": lambda: linen(Residual(jnp.bfloat16)),
    "nnx": nnx_network,
    "plain": plain,
}


def losses_of(logits):
    return lambda params: optax.softmax_cross_entropy_with_integer_labels(logits(params, IMAGES), LABELS)


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).reshape(-1) for leaf in jax.tree.leaves(tree)])


def cosine(one, two):
    return flat(one) @ flat(two) / np.linalg.norm(flat(one)) / np.linalg.norm(flat(two))


def estimated(estimator, losses, params):
    return jax.jit(lambda params: estimator(KEY, losses, params))(params)


def exact(losses, params):
    return jax.jit(jax.grad(lambda params: jnp.mean(losses(params))))(params)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_backprop_on_networks_as_they_are(name):
    params, logits = NETWORKS[name]()
    losses, estimator = losses_of(logits), activation(0.25 if name == "casts" else 1e-3, central=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimated(estimator, losses, params)
    gradient = exact(losses, params)
    assert jax.tree.structure(found.gradient) == jax.tree.structure(gradient)
    if name == "casts":
        assert cosine(found.gradient, gradient) > 0.99  # In bfloat16 a step must stand out of the rounding.
    else:
        assert np.linalg.norm(flat(found.gradient) - flat(gradient)) < 5e-3 * np.linalg.norm(flat(gradient))
    # The control: leaves that change places are seen.
    assert cosine(jax.tree.map(lambda leaf: leaf[..., ::-1], found.gradient), gradient) < 0.9
    assert int(found.queries) < 2 * flat(params).size + 1


def test_queries_are_units_where_they_are_fewer_than_weights():
    params, logits = plain()
    calls = []

    def losses(params):
        found = losses_of(logits)(params)
        jax.debug.callback(lambda _: calls.append(0), found)
        return found

    found = estimated(activation(chunk_size=3), losses, params)
    jax.block_until_ready(found)
    jax.effects_barrier()
    # Five units of the first layer, four of the second, five scales by weight or unit, the losses and the probes.
    assert len(calls) == int(found.queries) == 5 + 4 + 5 + 1 + PROBE


def test_branches_that_meet_share_their_units():
    params, logits = linen(Residual())
    found = jax.eval_shape(lambda params: activation()(KEY, losses_of(logits), params), params)
    assert found.queries.dtype == jnp.int32
    # conv 3x3x2x4 by weight (36 places x 4 channels are more), its bias, scale and shift by weight; the two branches by
    # their 3 x 3 x 8 common units; the dense layers by 6 and 4 units.
    counted = estimated(activation(), losses_of(logits), params)
    assert int(counted.queries) == (72 + 4 + 4 + 4) + 72 + 6 + 4 + 1 + PROBE


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunks_do_not_matter(size):
    params, logits = plain()
    one, other = (estimated(activation(chunk_size=n), losses_of(logits), params).gradient for n in (16, size))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one, other)


def test_two_uses_of_one_leaf_are_summed():
    params = {"w": 0.3 * jax.random.normal(KEY, (4, 4))}

    def losses(params):
        hidden = jnp.tanh(IMAGES[:, 0, :2].reshape(SIZE, 4) @ params["w"])
        return jnp.sum((hidden @ params["w"]) ** 2, axis=1)

    found = estimated(activation(1e-3, central=True), losses, params)
    np.testing.assert_allclose(found.gradient["w"], exact(losses, params)["w"], atol=1e-3)
    assert int(found.queries) == 2 * (4 + 4) + 1 + PROBE
    # The control: one use alone is another gradient.
    still = jax.lax.stop_gradient(params["w"])
    alone = exact(lambda p: jnp.sum((jnp.tanh(IMAGES[:, 0, :2].reshape(SIZE, 4) @ still) @ p["w"]) ** 2, 1), params)
    assert np.abs(alone["w"] - found.gradient["w"]).max() > 1e-2


INPUTS = jax.random.normal(jax.random.key(5), (SIZE, 8)).at[:, 0].set(0.0)
MASK = jnp.asarray(np.random.default_rng(2).random((8, 8)) < 0.5, jnp.float32)
ODD = {
    "masked": lambda p, x: jnp.tanh(x @ (p["w"] * MASK)),
    "scaled": lambda p, x: jnp.tanh(x @ (p["w"] / 3.0 + MASK)),
    "product rule": lambda p, x: jnp.tanh(x @ (p["w"] * (1 + p["w"]))),
    "twice a scale": lambda p, x: jnp.tanh(x @ p["w"] + (x * p["s"] + p["s"])),
    "low rank": lambda p, x: jnp.tanh(x @ (p["w"] @ p["r"])),
    "transposed": lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T),
    "per example": lambda p, x: jnp.tanh((x + p["w"][: x.shape[0]]) @ p["r"]) if len(x) <= 8 else jnp.tanh(x @ p["w"]),
}


@pytest.mark.filterwarnings("ignore:activation moves")
@pytest.mark.parametrize("batch", [1, 8, 12])
@pytest.mark.parametrize("name", ODD)
def test_odd_uses_and_batches_as_long_as_a_width_are_right(name, batch):
    """The first input is always zero, so that rows of a weight taken for examples would go unnoticed there."""
    params = {
        "w": 0.4 * jax.random.normal(KEY, (8, 8)),
        "r": 0.4 * jnp.ones((8, 8)) + jnp.eye(8),
        "s": jnp.float32(0.7),
    }

    def losses(params):
        return jnp.sum(ODD[name](params, INPUTS[:batch]) ** 2, axis=1)

    found, gradient = estimated(activation(1e-3, central=True), losses, params).gradient, exact(losses, params)
    assert np.linalg.norm(flat(found) - flat(gradient)) < 5e-3 * np.linalg.norm(flat(gradient))
    assert np.linalg.norm(flat(gradient)) > 0.1


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_confident_networks_are_not_refused(scale):
    params, logits = plain()
    params = {**params, "v": scale * params["v"]}
    found = jax.jit(lambda params: activation()(KEY, losses_of(logits), params).gradient)(params)
    assert np.isfinite(flat(found)).all()


def neighbors(z):
    return jnp.sum(jnp.tanh(z[:-1]) * z[1:], axis=1)


COUPLED = {
    "centered": lambda z: jnp.sum((z - z.mean(0)) ** 2, axis=1),
    "next": lambda z: jnp.concatenate([neighbors(z), jnp.zeros(1)]),
    "nearest": lambda z: jnp.min(jnp.sum((z[:, None] - z) ** 2, -1) + 1e9 * jnp.eye(SIZE), axis=1),
    "halves": lambda z: jnp.sum(((z - z.mean(0)) ** 2).astype(jnp.bfloat16), axis=1),
}


@pytest.mark.parametrize("name", COUPLED)
def test_every_coupling_is_seen(name):
    params, logits = plain()
    found = activation()(KEY, lambda params: COUPLED[name](logits(params, IMAGES)), params)
    assert np.isnan(flat(found.gradient)).all()


@pytest.mark.parametrize("batch", [2, 3, 6, 7, 20, 21, 256])
def test_of_any_two_examples_each_is_moved_without_the_other(batch):
    asked = probes(batch)
    assert not asked[0].any()
    apart = np.einsum("qi,qj->ij", asked.astype(int), (~asked).astype(int))
    assert (apart[~np.eye(batch, dtype=bool)] > 0).all()
    assert len(asked) - 1 == {2: 2, 3: 3, 6: 4, 7: 5, 20: 6, 21: 7, 256: 11}[batch]
    # The control: halves at random leave some together.
    random = np.random.default_rng(0).random((4, 2)) < 0.5
    assert (np.einsum("qi,qj->ij", random.astype(int), (~random).astype(int)) == 0).sum() > 2


@pytest.mark.parametrize("batch", [2, 6])
def test_a_loss_that_one_other_example_moves_is_refused(batch):
    params = {"w": 0.3 * jax.random.normal(KEY, (8, 3))}

    @jax.jit
    def gradient(moving, moved, weight):
        def losses(params):
            z = jnp.tanh(INPUTS[:batch] @ params["w"])
            return jnp.sum(z**2, axis=1) + weight * jnp.where(jnp.arange(batch) == moved, jnp.sum(z[moving]), 0.0)

        return activation()(KEY, losses, params).gradient["w"]

    for moving in range(batch):
        for moved in range(batch):
            assert np.isnan(gradient(moving, moved, 1.0)).all() == (moving != moved)
            assert np.isfinite(gradient(moving, moved, 0.0)).all()


def test_steps_are_divided_by_what_is_left_of_them():
    params, images = {"w": jnp.linspace(1.0, 2.0, 24).reshape(8, 3)}, INPUTS.astype(jnp.bfloat16)

    def losses(params):
        units = (images @ params["w"].astype(jnp.bfloat16)) * jnp.bfloat16(2)
        return jnp.sum(units.astype(jnp.float32), axis=1)

    with pytest.warns(UserWarning, match="smoothing of 0.02 is near the rounding of bfloat16"):
        found = activation(0.02)(KEY, losses, params)
    np.testing.assert_allclose(found.gradient["w"], exact(losses, params)["w"], atol=0.05)


def test_what_only_the_second_result_uses_is_no_use():
    params, logits = plain()

    def with_aux(params):
        return losses_of(logits)(params), {"norm": jnp.sum(params["w"] ** 2)}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = activation()(KEY, with_aux, params, has_aux=True)
    assert int(found.queries) == 5 + 4 + 5 + 1 + PROBE
    assert found.aux["norm"] > 0


def test_leaves_with_other_uses_are_named_and_moved_by_weight():
    params = {"table": jax.random.normal(KEY, (6, 3)), "left": jnp.ones((3, 3)), "w": jnp.ones((3, 2))}

    def losses(params):
        rows = params["table"][LABELS]
        hidden = jnp.tanh(rows @ params["left"])
        hidden = hidden + (params["left"] @ hidden.T).T
        loop, _ = jax.lax.scan(lambda carry, _: (jnp.sin(carry), None), hidden @ params["w"], None, 2)
        return loop.sum(1)

    with pytest.warns(UserWarning, match="weight by weight") as told:
        found = estimated(activation(1e-3, central=True), losses, params)
    text = " ".join(str(one.message) for one in told)
    assert "['table'] weight by weight, 18 queries: it is used in gather" in text
    assert "['left'] weight by weight, 9 queries: it is used in dot_general" in text
    assert "['w']" not in text
    for name, value in exact(losses, params).items():
        np.testing.assert_allclose(found.gradient[name], value, atol=3e-3)


def test_losses_that_interact_are_refused(capfd):
    params, logits = plain()

    def centered(params):
        return COUPLED["centered"](logits(params, IMAGES))

    found = jax.jit(lambda params: activation()(KEY, centered, params))(params)
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert np.isnan(flat(found.gradient)).all()
    assert "activation needs examples that do not interact" in capfd.readouterr().err
    assert np.isfinite(flat(activation()(KEY, losses_of(logits), params).gradient)).all()
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    jax.block_until_ready(jax.vmap(lambda params: activation()(KEY, losses_of(logits), params).gradient)(twice))
    jax.effects_barrier()
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match=r"needs the losses of the examples, \[batch\], got shape \(\)"):
        activation()(KEY, lambda params: losses_of(logits)(params).mean(), params)


def test_trades_attacks_once_and_agrees_with_backprop():
    model = models.mlp(4, widths=(6,))
    params, state = model.init(KEY, IMAGES)
    batch = Batch(IMAGES, LABELS, jnp.arange(SIZE), jnp.ones(SIZE))
    keys = jax.random.split(KEY, SIZE)
    objective = objectives.trades(geometry.linf(), 0.1, steps=3, step_size=0.05)
    prepared = objective.prepare(keys, model, params, state, batch)

    def losses(params):
        return objective.losses(prepared, keys, model, params, state, batch)[0]

    found, gradient = estimated(activation(1e-3), losses, params).gradient, exact(losses, params)
    assert cosine(found, gradient) > 0.99
    assert cosine(estimated(coordinate(1e-3), losses, params).gradient, gradient) > 0.99
