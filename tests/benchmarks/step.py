"""The trainer's step against a hand-written jitted loop, and against the same step in PyTorch, in one run.

    python tests/benchmarks/step.py [mlp] [resnet8] [wrn-28-10]

Each row: images a second of the trainer, of the plain loop, of PyTorch (extra `peers`), and the ratios of their times.
Rounds alternate, so that a machine whose speed drifts does not favor one of them; the median of the rounds is printed
with their range. XLA's CPU convolutions are two to three times slower than oneDNN's, which PyTorch calls: the ratio for
a convolutional network on a CPU is a figure about them.
"""

import os
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room on the same GPU.

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrobust import attacks, data, geometry, models, objectives, train

BATCH, ATTACK_STEPS, RADIUS, STEP_SIZE, BETA, ROUNDS = 128, 10, 8 / 255, 2 / 255, 6.0, 7


def examples(name):
    """Random images: what a step costs does not depend on them."""
    generator, side, channels = np.random.default_rng(0), *((8, 1) if name == "mlp" else (32, 3))
    images = generator.random((1024, side, side, channels), np.float32)
    return data.arrays(images, generator.integers(0, 10, 1024), classes=10), images


def trainer_round(name, model, steps):
    """A function that runs `steps` of the trainer."""
    source, _ = examples(name)
    start = attacks.gaussian_start(0.001)
    experiment = train.Experiment(
        model=model,
        data=source,
        objective=objectives.trades(
            geometry.linf(), RADIUS, beta=BETA, steps=ATTACK_STEPS, step_size=STEP_SIZE, start=start
        ),
        optimizer=optax.sgd(0.01, momentum=0.9),
        batch_size=BATCH,
    )
    trainer = train.prepare_training(experiment, train.make_mesh(jax.devices()[:1]))
    box = [*trainer.init(), trainer.place(source.init(jax.random.key(0)))]

    def run():
        for _ in range(steps):
            box[0], box[1], metrics = trainer.step(*box, ())
        jax.block_until_ready((box, metrics))

    return run


def plain_round(name, model, steps):
    """The same algorithm as somebody would write it in one function, with nothing of the library but the network."""
    _, images = examples(name)
    images, labels = jnp.asarray(images), jnp.arange(1024) % 10
    params, state = model.init(jax.random.key(0), images[:1])
    optimizer = optax.sgd(0.01, momentum=0.9)

    def logits(params, x, train):
        return model.apply(params, state, x, train=train)[0]

    def kl(p, z):
        return jnp.sum(jax.scipy.special.xlogy(p, p) - p * jax.nn.log_softmax(z), -1)

    @jax.jit
    def step(params, opt_state, key):
        key, pick, noise = jax.random.split(key, 3)
        rows = jax.random.randint(pick, (BATCH,), 0, 1024)
        x, y = images[rows], labels[rows]
        clean = jax.lax.stop_gradient(jax.nn.softmax(logits(params, x, False)))

        def ascend(_, adversarial):
            gradient = jax.grad(lambda a: jnp.sum(kl(clean, logits(params, a, False))))(adversarial)
            moved = adversarial + STEP_SIZE * jnp.sign(gradient)
            return jnp.clip(jnp.clip(moved, x - RADIUS, x + RADIUS), 0, 1)

        start = jnp.clip(x + 0.001 * jax.random.normal(noise, x.shape), 0, 1)
        if name == "mlp" or jax.default_backend() != "cpu":
            adversarial = jax.lax.fori_loop(0, ATTACK_STEPS, ascend, start)
        else:  # Written out: XLA's CPU compiler runs a convolution in a loop several times slower.
            adversarial = start
            for i in range(ATTACK_STEPS):
                adversarial = ascend(i, adversarial)

        def loss(params):
            z = logits(params, x, True)
            robust = kl(jax.nn.softmax(z), logits(params, adversarial, True))
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, y) + BETA * robust)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, key, value

    box = [params, optimizer.init(params), jax.random.key(1)]

    def run():
        for _ in range(steps):
            *box[:], value = step(*box)
        jax.block_until_ready((box, value))

    return run


def torch_round(name, steps):
    """The same step in PyTorch, or None where it is not installed."""
    try:
        import torch
        from torch.nn import functional
    except ImportError:
        return None
    from networks import network

    torch.manual_seed(0)
    wide = name.startswith("wrn-")
    device = torch.device("cuda" if wide and torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if wide else torch.contiguous_format
    torch.backends.cudnn.benchmark = True
    body, (_, images) = network(name).to(device, memory_format=layout), examples(name)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device, memory_format=layout)
    labels = torch.arange(1024, device=device) % 10

    def net(x):
        with torch.autocast(device.type, torch.bfloat16, enabled=wide):
            return body(x).float()

    optimizer = torch.optim.SGD(body.parameters(), 0.01, momentum=0.9)

    def step():
        rows = torch.randint(0, 1024, (BATCH,), device=device)
        x, y = images[rows], labels[rows]
        body.eval()
        with torch.no_grad():
            clean = functional.softmax(net(x), 1)
        adversarial = (x + 0.001 * torch.randn_like(x)).clamp(0, 1)
        for _ in range(ATTACK_STEPS):
            adversarial.requires_grad_(True)
            loss = functional.kl_div(functional.log_softmax(net(adversarial), 1), clean, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, adversarial)
            moved = adversarial.detach() + STEP_SIZE * gradient.sign()
            adversarial = torch.minimum(torch.maximum(moved, x - RADIUS), x + RADIUS).clamp(0, 1)
        body.train()
        optimizer.zero_grad()
        z = net(x)
        robust = functional.kl_div(
            functional.log_softmax(net(adversarial), 1), functional.softmax(z, 1), reduction="none"
        )
        (functional.cross_entropy(z, y) + BETA * robust.sum(1).mean()).backward()
        optimizer.step()

    def run():
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def model_of(name):
    """The library's network of a row."""
    if name == "mlp":
        return models.mlp(10, widths=(256, 256))
    if name.startswith("wrn-"):
        depth, width = map(int, name.split("-")[1:])
        return models.wide_resnet(depth, width, jax.nn.silu, dtype=jnp.bfloat16)
    return getattr(models, name)(classes=10)


def matmul_rate(side=8192, repetitions=20):
    """FLOP/s of a bfloat16 product of two square matrices."""
    matrix = jnp.ones((side, side), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    began = time.perf_counter()
    for _ in range(repetitions):
        found = product(matrix, matrix)
    found.block_until_ready()
    return 2 * side**3 * repetitions / (time.perf_counter() - began)


def model_flops(name, model):
    """FLOPs that one image's step needs: of a forward pass F, 1 F clean, 2 F an attack step, 3 F each of two losses."""
    inputs = jax.ShapeDtypeStruct(examples(name)[1][:1].shape, jnp.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
    forward = jax.jit(lambda p, s, x: model.apply(p, s, x, train=False)[0]).lower(params, state, inputs)
    return (1 + 2 * ATTACK_STEPS + 2 * 3) * forward.cost_analysis()["flops"]


def main(names):
    """Print a row for each network."""
    for name in names:
        model, wide = model_of(name), name.startswith("wrn-")
        steps = 100 if name == "mlp" else 2
        rounds = {
            "trainer": trainer_round(name, model, steps),
            "plain loop": plain_round(name, model, steps),
            "PyTorch": torch_round(name, steps),
        }
        rounds = {who: run for who, run in rounds.items() if run is not None}
        compile_seconds = {}
        for who, run in rounds.items():
            began = time.perf_counter()
            run()
            compile_seconds[who] = time.perf_counter() - began
        seconds = {who: [] for who in rounds}
        for _ in range(ROUNDS):
            for who, run in rounds.items():
                began = time.perf_counter()
                run()
                seconds[who].append((time.perf_counter() - began) / steps)
        for who, times in seconds.items():
            ratios = np.array(seconds["trainer"]) / np.array(times)
            print(
                f"{name}, {who}: {BATCH / np.median(times):,.0f} images/s, trainer's time / its time "
                f"{np.median(ratios):.3f} [{ratios.min():.3f}, {ratios.max():.3f}], "
                f"first call {compile_seconds[who]:.1f} s"
            )

        if wide:
            reached = model_flops(name, model) * BATCH / np.median(seconds["trainer"])
            share = reached / (rate := matmul_rate(8192 if jax.default_backend() == "gpu" else 512))
            print(f"{name}: {reached / 1e12:.3g} model TFLOP/s, {share:.1%} of the {rate / 1e12:.3g} of a product")


if __name__ == "__main__":
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, batch {BATCH}, PGD-{ATTACK_STEPS} TRADES")
    main(sys.argv[1:] or ["mlp", "resnet8"])
