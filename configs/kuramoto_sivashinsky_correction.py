"""A coarse solver of the Kuramoto-Sivashinsky equation, corrected by a network that learns inside its loop.

Paper: Um, Brand, Fei, Holl and Thuerey, "Solver-in-the-Loop", NeurIPS 2020, https://arxiv.org/abs/2007.00016; without
       derivatives of the solver: Chen et al., "DeepZero", ICLR 2024, https://arxiv.org/abs/2310.02025. The equation,
       the network (511 parameters) and the schedule are ours.
Command: jaxrobust train configs/kuramoto_sivashinsky_correction.py --method zeroth_order
Expected: see README.md for the mean absolute error of 40-step rollouts by method, means of three seeds,
          which are with --batch-size 4.
Device: two CPU cores. Time: some minutes for zeroth_order, under one for the others.

The solver is NumPy behind a callback, which nothing differentiates: 24 points on a domain of length 30, one step of
order 1 for a time of 0.25. The reference has 64 points and five steps of order 4 in that time.
"""

from typing import Literal

import numpy as np
import optax

from jaxrobust import backprop, data, models, objectives, solvers, train, zeroth_order

POINTS, LENGTH, TIME = 24, 30.0, 0.25


def experiment(
    *,
    method: Literal["none", "supervised", "first_order", "zeroth_order", "interface"] = "zeroth_order",
    unroll: int = 8,
    steps: int = 800,
    batch_size: int = 8,
    seed: int = 0,
    learning_rate: float = 3e-3,
    smoothing: float = 1e-2,
    central: bool = True,
    exponax: bool = False,
    horizon: int = 40,
) -> train.Experiment:
    """A corrector of 511 parameters.

    Args:
      method: "none" leaves the solver as it is; "supervised" fits its error on reference states, outside the loop;
        "first_order" differentiates the same step in JAX; "zeroth_order" moves each weight of the corrector and asks
        the NumPy solver; "interface" moves each number of the state at every step, and backpropagation does the rest.
      unroll: steps of the loop in training.
      steps: parameter updates.
      batch_size: windows of one update.
      seed: seed of parameters, data order, and initial fields.
      learning_rate: the peak of Adam's cosine schedule.
      smoothing: of difference quotients, in weights or in numbers of the state.
      central: whether quotients are central. Forward ones have a bias that outweighs the gradient near a minimum.
      exponax: whether "first_order" differentiates exponax's solver (extra `pde`) and not ours; ours is evaluated.
      horizon: steps of a test rollout.
    """
    if exponax and method != "first_order":
        raise ValueError(f"exponax is for the method first_order, got {method}: leave it out")
    solver = solver_for(method, smoothing, central, exponax)
    estimator = zeroth_order.coordinate(smoothing, central) if method == "zeroth_order" else backprop()
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    runs = references(seed, 48, max(100, horizon))
    return train.Experiment(
        model=models.periodic_cnn(1, widths=(34,), kernel=7),
        data=data.windows(runs[:32], unroll),
        test=data.windows(runs[32:, : horizon + 1], horizon, shuffle=False),
        objective=objectives.solver_in_the_loop(solver, supervised=method in ("none", "supervised")),
        gradient=estimator,
        optimizer=optax.set_to_zero() if method == "none" else adam,
        evaluate=solvers.rollout_error(coarse() if exponax else solver),
        steps=1 if method == "none" else steps,
        batch_size=batch_size,
        seed=seed,
        log_every=50,
    )


def coarse():
    """The solver that is corrected, of NumPy's arrays or of JAX's."""
    return solvers.kuramoto_sivashinsky(POINTS, LENGTH, TIME, order=1)


def solver_for(method, smoothing, central, exponax):
    """The same step as a method may see it."""
    if method == "first_order":
        return exponax_solver() if exponax else coarse()
    box = zeroth_order.black_box(coarse(), (POINTS,), batched=True)
    if method == "interface":
        return zeroth_order.differentiable(box, zeroth_order.coordinate(smoothing, central))
    return box


def exponax_solver():
    """The peer's solver of the same scheme."""
    from exponax.stepper import KuramotoSivashinskyConservative

    stepper = KuramotoSivashinskyConservative(1, LENGTH, POINTS, TIME, order=1)
    return lambda state: stepper(state[None])[0]


def references(seed, count, steps):
    """Trajectories of the fine solver on the coarse grid, `[count, steps + 1, points]` float32."""
    fine = solvers.kuramoto_sivashinsky(64, LENGTH, TIME, order=4, substeps=5)
    start = solvers.random_fields(np.random.default_rng(seed), count, 64)
    runs = solvers.trajectories(fine, start, steps, discarded=400)
    return solvers.resampled(runs, POINTS).astype(np.float32)
