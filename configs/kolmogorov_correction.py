"""A coarse solver of two-dimensional Kolmogorov flow, corrected by a network that learns inside its loop.

Paper: Um, Brand, Fei, Holl and Thuerey, "Solver-in-the-Loop", NeurIPS 2020, https://arxiv.org/abs/2007.00016; without
       derivatives of the solver: Chen et al., "DeepZero", ICLR 2024, https://arxiv.org/abs/2310.02025. The flow, the
       network (571 parameters) and the schedule are ours.
Command: jaxrobust train configs/kolmogorov_correction.py --method first_order
Expected: a mean absolute error of the vorticity in 20-step rollouts of 0.204, and 0.218 uncorrected, with
          --batch-size 2 --steps 100 and seed 0.
Device: two CPU cores. Time: about a minute for first_order; zeroth_order asks 36,576 solver steps in an update.

The solver is NumPy behind a callback, which nothing differentiates: the vorticity on 24 x 24 points, one step of order
1 for a time of 0.1, at Reynolds number 50. The reference has 48 x 48 points and two steps of order 4 in that time.
"""

from typing import Literal

import numpy as np
import optax

from jaxrobust import backprop, data, models, objectives, solvers, train, zeroth_order

POINTS, TIME, VISCOSITY = 24, 0.1, 0.02


def experiment(
    *,
    method: Literal["none", "supervised", "first_order", "zeroth_order", "interface"] = "zeroth_order",
    unroll: int = 4,
    steps: int = 400,
    batch_size: int = 8,
    seed: int = 0,
    learning_rate: float = 3e-3,
    smoothing: float = 1e-2,
    central: bool = True,
    exponax: bool = False,
    horizon: int = 20,
) -> train.Experiment:
    """A corrector of 571 parameters.

    Args:
      method: "none" leaves the solver as it is; "supervised" fits its error on reference states, outside the loop;
        "first_order" differentiates the same step in JAX; "zeroth_order" moves each weight of the corrector and asks
        the NumPy solver; "interface" moves each of the 576 numbers of the state at every step, and backpropagation
        does the rest.
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
    runs = references(seed, 8, max(40, horizon))
    return train.Experiment(
        model=models.periodic_cnn(2, widths=(30,), kernel=3),
        data=data.windows(runs[:6], unroll),
        test=data.windows(runs[6:], horizon, stride=horizon, shuffle=False),
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
    return solvers.kolmogorov(POINTS, TIME, viscosity=VISCOSITY, order=1)


def solver_for(method, smoothing, central, exponax):
    """The same step as a method may see it."""
    if method == "first_order":
        return exponax_solver() if exponax else coarse()
    box = zeroth_order.black_box(coarse(), (POINTS, POINTS), batched=True)
    if method == "interface":
        return zeroth_order.differentiable(box, zeroth_order.coordinate(smoothing, central))
    return box


def exponax_solver():
    """The peer's solver of the same scheme."""
    from exponax.stepper import KolmogorovFlowVorticity

    # Its vorticity turns the other way round, and so must its force.
    options = {"diffusivity": VISCOSITY, "drag": -0.1, "injection_scale": -1.0, "order": 1}
    stepper = KolmogorovFlowVorticity(2, 2 * np.pi, POINTS, TIME, **options)
    return lambda state: -stepper(-state[None])[0]


def references(seed, count, steps):
    """Trajectories of the fine solver on the coarse grid, `[count, steps + 1, points, points]` float32."""
    fine = solvers.kolmogorov(48, TIME, viscosity=VISCOSITY, order=4, substeps=2)
    start = solvers.random_fields(np.random.default_rng(seed), count, 48, 2, size=2.0).astype(np.float32)
    runs = solvers.trajectories(fine, start, steps, discarded=80)
    return solvers.resampled(runs, POINTS, 2)
