"""Train PGD-TRADES with synchronized batch norm and print the loss of every step as JSON.

    python curve.py DEVICES DTYPE STEPS [PROCESS PORT [RUN]]

With PROCESS, two of these join on the loopback address, with DEVICES devices each; with RUN they keep a run directory,
evaluate, and go on where they were.
"""

import json
import os
import sys

devices, dtype, steps = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = str(int(dtype == "float64"))
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

if len(sys.argv) > 4:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[5]}", 2, int(sys.argv[4]))

from jaxrobust import attacks, data, geometry, models, objectives, train


class Net(nn.Module):
    """Two layers with batch norm, in one dtype throughout."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        kind = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(dtype)}
        x = nn.Dense(32, **kind)(x.reshape(len(x), -1))
        x = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name, **kind)(x)
        return nn.Dense(10, **kind)(nn.relu(x))


def evaluation(test):
    """A short one for runs that keep a directory."""
    if len(sys.argv) <= 6:
        return {}
    attack = attacks.pgd(geometry.linf(), 0.1, steps=2)
    return {"test": test, "evaluate": attacks.accuracy({"pgd-2": attack}, examples=64, batch_size=32, gallery=8)}


# A Linf step is a sign: where a gradient is within float32 rounding of 0, the order of a sum decides it. A normalized
# L2 step is continuous; but 0.001 away from the clean image, where TRADES starts by default, its gradient is hardly
# more than its rounding, which then sets its direction. In float32 the start is far enough for a direction of its own.
BALL = {
    "float64": (geometry.linf(), 0.1, 0.03, attacks.gaussian_start(0.001)),
    "float32": (geometry.l2(), 0.5, 0.15, attacks.gaussian_start(0.1)),
}


def main():
    digits = data.digits()
    source = data.transformed(digits.train, lambda key, image: image.astype(dtype))
    ball, radius, step_size, start = BALL[dtype]
    experiment = train.Experiment(
        model=models.linen(Net()),
        data=source,
        objective=objectives.trades(ball, radius, beta=3.0, steps=5, step_size=step_size, start=start),
        optimizer=optax.sgd(0.05, momentum=0.9),
        batch_size=64,
        steps=steps,
        log_every=1,
        **evaluation(digits.test),
    )
    rows = train.fit(experiment, sys.argv[6] if len(sys.argv) > 6 else None).rows
    if jax.process_index() == 0:
        print(json.dumps([row["loss"] for row in rows if "split" not in row]))


main()
