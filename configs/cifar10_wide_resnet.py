"""The compute-efficient adversarial training recipe on CIFAR-10: TRADES, a SiLU WideResNet, real and generated images.

Paper: Bartoldson, Diffenderfer, Parasyris and Kailkhura, "Adversarial Robustness Limits via Scaling-Law and
       Human-Alignment Studies", ICML 2024, https://arxiv.org/abs/2404.09349.
Command: jaxrobust train configs/cifar10_wide_resnet.py --data-dir DIRECTORY --synthetic GENERATED.npz
Expected: published for WRN-82-8 on 349 M images: 93.11 % clean, 71.59 % under AutoAttack at 8/255. Not rerun here: it
       costs 2.2e20 FLOPs.
Device: a TPU pod slice or several accelerators. The step compiles for a TPU v5e-256 (`tests/benchmarks/pod.py`).
Time: 2.2e20 FLOPs; about a day and a half on 64 chips that sustain 80 TFLOP/s each (bfloat16).

Where it differs from the released code: the schedule moves every step and not once an epoch, and generated images are
drawn in reshuffled epochs.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from jaxrobust import attacks, data, geometry, models, objectives, train

WARM = 0.025


def experiment(
    *,
    data_dir: str = "cifar10",
    synthetic: str | None = None,
    fraction: float = 0.875,
    depth: int = 82,
    width: int = 8,
    steps: int = 170_000,
    batch_size: int = 2048,
    accumulation: int = 1,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> train.Experiment:
    """TRADES with a wide residual network on real and generated images.

    Args:
      data_dir: directory of CIFAR-10: the binary version, or `.npz` files.
      synthetic: `.npz` file of generated images with `image` and `label`; none trains on real images alone.
      fraction: share of generated images in a batch; 0.875 in the compute-optimal run, 1 in the scaling-law runs.
      depth: 6 n + 4 layers.
      width: factor of the channels.
      steps: parameter updates.
      batch_size: examples of one update, over all devices.
      accumulation: parts of a batch that a device computes one after another.
      learning_rate: peak of the one-cycle schedule: 0.1 for batches of 2048, 0.2 to 0.3 for 512 to 1024.
      seed: seed of parameters, data order and attacks.
    """
    images, ball, radius = data.cifar10(data_dir), geometry.linf(), 8 / 255
    source = images.train if synthetic is None else data.mixture(images.train, data.npz(synthetic), fraction)
    return train.Experiment(
        model=models.wide_resnet(
            depth,
            width,
            activation=jax.nn.silu,
            classes=10,
            mean=models.CIFAR10_MEAN,
            std=models.CIFAR10_STD,
            dtype=jnp.bfloat16,
        ),
        data=data.transformed(source, data.crop(4), data.flip()),
        test=images.test,
        objective=objectives.trades(
            ball,
            radius,
            beta=5.0,
            steps=10,
            step_size=2 / 255,
            start=attacks.uniform_start,
            label_smoothing=0.1,
            attack_in_training_mode=True,
        ),
        optimizer=optax.chain(
            optax.add_decayed_weights(5e-4, mask=not_batch_norm),
            optax.inject_hyperparams(optax.sgd, static_args=("nesterov",))(
                learning_rate=optax.cosine_onecycle_schedule(steps, learning_rate, pct_start=WARM),
                momentum=functools.partial(momentum, steps=steps),
                nesterov=True,
            ),
        ),
        average=train.moving_average(0.995, warmup=round(WARM * steps)),
        evaluate=attacks.accuracy(
            {"pgd-20": attacks.pgd(ball, radius, steps=20, step_size=2 / 255)}, batch_size=1024, examples=1024
        ),
        final=attacks.accuracy(
            {"pgd-20": attacks.pgd(ball, radius, steps=20, step_size=2 / 255)}, batch_size=1024, gallery=10
        ),
        steps=steps,
        batch_size=batch_size,
        accumulation=accumulation,
        seed=seed,
        evaluate_every=max(1, steps // 100),
        checkpoint_every=max(1, steps // 200),
        log_every=50,
    )


def not_batch_norm(params):
    """Everything but scales and shifts of batch norm decays."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "BatchNorm" not in jax.tree_util.keystr(path), params)


def momentum(step, *, steps):
    """0.95 to 0.85 while the rate rises, and back while it falls, by cosines: PyTorch's one-cycle default."""
    peak = WARM * steps
    share = jnp.where(step < peak, step / peak, 1 - (step - peak) / (steps - peak))
    return 0.95 - 0.05 * (1 - jnp.cos(jnp.pi * jnp.clip(share, 0, 1)))
