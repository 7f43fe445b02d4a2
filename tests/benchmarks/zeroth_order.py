"""What a gradient from function values costs: multiplications counted on ResNet-20, time measured on a small network.

    python tests/benchmarks/zeroth_order.py count
    python tests/benchmarks/zeroth_order.py time [torch]      # against the same loop in PyTorch, extra `peers`
    python tests/benchmarks/zeroth_order.py cosine DIRECTORY [STEPS]      # of CIFAR-10

"count" walks the jaxprs of single queries: multiply-accumulates of products and convolutions, averaged over all
parameters, over those of the whole network; and how evenly they lie on the chips of a pod. Reuse evaluates what follows
a parameter; structured perturbation follows one channel as far as it goes. "time" takes one full gradient of the digits
network 64-32-10 with 256 examples, by a jitted Python loop over coordinates (its rate from 500 of them; each value is
read, as the loop in PyTorch does, or all are asked for before any is waited for), by chunked `vmap` over whole
evaluations, with reuse, structured, and by units. "cosine" compares 2,000 coordinates of ResNet-20, drawn from all
alike, with backprop on the same 16 images: at first, and after STEPS of training on these images alone, where what is
left of the gradient is small beside the curvature and, in 32 bits, beside the rounding of the losses: with
JAX_ENABLE_X64=1 all is in 64 bits.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxrobust import data, models
from jaxrobust.sites import Literal, trace
from jaxrobust.zeroth_order import activation, coordinate, uniform_selection
from jaxrobust.zeroth_order.structured import after_step

SMOOTHING, CHUNK, ROUNDS, EXAMPLES, LOOPED = 5e-3, 64, 7, 256, 500
# Smoothing, and whether on both sides.
QUOTIENTS = ((SMOOTHING / 10, True), (SMOOTHING, True), (SMOOTHING, False))
CHIPS = 256


def multiplications(function, *arguments):
    """Multiply-accumulates of all products and convolutions."""
    program, total = trace(lambda given: function(*given), arguments), 0
    shapes = dict(zip(program.leaves, (jnp.shape(leaf) for leaf in jax.tree.leaves(arguments)), strict=True))
    shapes |= {place: jnp.shape(value) for place, value in program.constants.items()}
    for equation in program.equations:
        shapes.update(zip(equation.outputs, equation.shapes, strict=True))
        if equation.name not in ("dot_general", "conv_general_dilated"):
            continue
        left, right = (
            np.shape(place.value) if isinstance(place, Literal) else shapes[place] for place in equation.inputs
        )
        if equation.name == "dot_general":
            (axes, _), _ = equation.options["dimension_numbers"]
            each = np.prod([left[axis] for axis in axes])
        else:
            spec = equation.options["dimension_numbers"].rhs_spec
            each = np.prod([right[axis] for axis in spec[1:]])
        total += int(np.prod(equation.shapes[0]) * each)
    return total


def count():
    """Print the savings on ResNet-20, counted on one image."""
    model = models.resnet20()
    images = jnp.zeros((1, 32, 32, 3))
    params, state = model.init(jax.random.key(0), images)

    def losses(params):
        return model.apply(params, state, images, train=False)[0].sum(1)

    leaves, program = jax.tree.leaves(params), trace(losses, params)
    known = program.evaluate(leaves)
    whole = multiplications(losses, params)
    reused = structured = split = 0.0
    for number, leaf in enumerate(leaves):

        def suffix(moved, number=number):
            return program.after(known, {}, {program.leaves[number]: moved}, program.outputs[:1])[0]

        reused += leaf.size * multiplications(suffix, leaf)
        each = multiplications(
            lambda index, number=number: after_step(program, known, number, index, SMOOTHING), jnp.int32(0)
        )
        structured += leaf.size * each
        split += -(-leaf.size // CHIPS) * each
    size = sum(leaf.size for leaf in leaves)
    print(f"ResNet-20: {size:,} parameters, {whole / 1e6:.2f} million multiplications an image")
    print(
        f"forwards a coordinate: reuse {reused / size / whole:.3f} ({size * whole / reused:.2f} times less), "
        f"structured {structured / size / whole:.3f} ({size * whole / structured:.2f} times less)"
    )
    print(f"split over {CHIPS} devices, a device does {split / structured * CHIPS - 1:.1%} more than its equal share")


def seconds(function, *arguments):
    """Median of several runs, compiled before."""
    jax.block_until_ready(function(*arguments))
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def digits_network():
    """Parameters and losses of 64-32-10 on 256 digits."""
    source = data.digits().train
    batch = source.batch(source.init(jax.random.key(0)), 0, jnp.arange(EXAMPLES), source.size)
    model = models.mlp(10, widths=(32,))
    params, state = model.init(jax.random.key(1), batch.inputs)

    def losses(params):
        logits, _ = model.apply(params, state, batch.inputs, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    return params, losses, batch


def measure(peer=None):
    """Print the times."""
    params, losses, batch = digits_network()
    leaves = jax.tree.leaves(params)
    size, key = sum(leaf.size for leaf in leaves), jax.random.key(0)
    flat, unravel = ravel_pytree(params)

    def at(vector, index, step):
        return jnp.mean(losses(unravel(vector.at[index].add(step))))

    single = jax.jit(lambda vector, index: at(vector, index, SMOOTHING))

    def looped(vector):
        return [single(vector, index).item() for index in range(LOOPED)]

    def ahead(vector):
        return [single(vector, index) for index in range(LOOPED)]

    def chunked(vector):
        return jax.lax.map(lambda index: at(vector, index, SMOOTHING), jnp.arange(size), batch_size=CHUNK)

    def reused(params):
        program = trace(losses, params)
        known, parts = program.evaluate(jax.tree.leaves(params)), []
        for number, leaf in enumerate(leaves):

            def value(index, number=number, leaf=leaf):
                moved = leaf.reshape(-1).at[index].add(SMOOTHING).reshape(leaf.shape)
                return jnp.mean(program.after(known, {}, {program.leaves[number]: moved}, program.outputs[:1])[0])

            parts.append(jax.lax.map(value, jnp.arange(leaf.size), batch_size=CHUNK))
        return parts

    loop = seconds(looped, flat) * size / LOOPED
    queued = seconds(ahead, flat) * size / LOOPED
    exact = jax.grad(lambda params: jnp.mean(losses(params)))
    rows = {
        "Python loop, jitted": loop,
        "Python loop, jitted, never waiting": queued,
        "chunked vmap": seconds(jax.jit(chunked), flat),
        "feature reuse": seconds(jax.jit(reused), params),
        "structured (coordinate)": seconds(jax.jit(lambda p: coordinate(SMOOTHING)(key, losses, p).gradient), params),
        "units (activation)": seconds(jax.jit(lambda p: activation(SMOOTHING)(key, losses, p).gradient), params),
        "backprop": seconds(jax.jit(exact), params),
    }
    if peer:
        rows["Python loop, PyTorch"] = torch_loop(batch, size)
    print(f"64-32-10, {size:,} parameters, {EXAMPLES} examples, one full gradient on {jax.devices()[0].device_kind}")
    for name, taken in rows.items():
        speeds = f"{loop / taken:.3g} times the loop's speed, {queued / taken:.3g} times that of one that never waits"
        print(f"{name} | {1e3 * taken:.3g} ms | {speeds}")


def torch_loop(batch, size):
    """Seconds for all coordinates of the same network in PyTorch, one after another."""
    import torch

    inputs = torch.tensor(np.asarray(batch.inputs).reshape(EXAMPLES, -1))
    targets = torch.tensor(np.asarray(batch.targets), dtype=torch.long)
    network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    weight, found = network[0].weight.data.reshape(-1), []
    with torch.no_grad():
        for _ in range(3):
            began = time.perf_counter()
            for index in range(LOOPED):
                weight[index] += SMOOTHING
                torch.nn.functional.cross_entropy(network(inputs), targets).item()
                weight[index] -= SMOOTHING
            found.append(time.perf_counter() - began)
    return statistics.median(found) * size / LOOPED


def cosine(directory, steps="150", sampled=2000, examples=16):
    """Print how well coordinates agree with backprop on ResNet-20, batch norm in training mode."""
    source = data.cifar10(directory).train
    batch = source.batch(source.init(jax.random.key(0)), 0, jnp.arange(examples), examples)
    # Double precision where JAX has it.
    wide = jnp.result_type(float)
    model = models.resnet20(mean=models.CIFAR10_MEAN, std=models.CIFAR10_STD, dtype=wide, param_dtype=wide)
    images = batch.inputs.astype(wide)
    params, state = model.init(jax.random.key(1), images)

    def losses(params):
        logits, _ = model.apply(params, state, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    exact = jax.jit(jax.value_and_grad(lambda params: jnp.mean(losses(params))))
    optimizer = optax.sgd(0.05, momentum=0.9)

    # Step by step from the host: inside a loop XLA's convolutions on a CPU take one core.
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(exact(params)[1], state)
        return optax.apply_updates(params, updates), state

    near, descent = params, optimizer.init(params)
    for _ in range(int(steps)):
        near, descent = step(near, descent)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    selection = uniform_selection(sampled / size, jax.random.key(2))
    points = {"at first": params, f"after {steps} steps": near}

    def picked(tree, places):
        leaves = [np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)]
        return np.concatenate([leaf[at] for leaf, at in zip(leaves, places, strict=True)])

    for smoothing, central in QUOTIENTS:
        estimator = coordinate(smoothing, central=central, selection=selection, chunk_bytes=2**28)
        # Compiled once for both points: it takes minutes.
        estimate = jax.jit(lambda p, estimator=estimator: estimator(jax.random.key(0), losses, p).gradient)
        for name, point in points.items():
            places = [np.asarray(one.indices) for one in selection.choose(jnp.int32(0), point)]
            value, gradient = exact(point)
            wanted, both = picked(gradient, places), picked(estimate(point), places)
            alike = both @ wanted / np.linalg.norm(both) / np.linalg.norm(wanted)
            print(
                f"{'both sides' if central else 'forward'}, smoothing {smoothing:g}, {name}: loss {float(value):.4f}, "
                f"{wanted.size} coordinates: cosine {alike:.5f}, length {np.linalg.norm(both):.3g} for "
                f"{np.linalg.norm(wanted):.3g}",
                flush=True,
            )


if __name__ == "__main__":
    {"count": count, "time": measure, "cosine": cosine}[sys.argv[1]](*sys.argv[2:])
