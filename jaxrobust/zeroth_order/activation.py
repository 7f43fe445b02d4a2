r"""Activation-wise estimation: one query for every unit, whatever the number of its weights.

A linear site gives :math:`z = A(x) w` (`jaxrobust.sites`). Where examples do not interact, a unit j of z may be moved
for all of them at once, and the losses l_b of the examples tell its derivative for each:

.. math:: \delta_{bj} = \frac{l_b(z + \mu e_j) - l_b(z)}{\mu}, \qquad g_w = \frac{1}{B} A(x)^T \delta

A dense layer of m x n weights costs n queries in place of m n, and its bias none; a convolution as many as its output
has places and channels, or as it has weights, whichever is less. It is node perturbation, without the noise.
"""

import itertools
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.sites import Place, Program, Site, trace
from jaxrobust.typing import Array, AxisName, Estimate, Estimator, Key, Params, State
from jaxrobust.zeroth_order.coordinate import check_floating, check_steps
from jaxrobust.zeroth_order.queries import answers, within
from jaxrobust.zeroth_order.structured import after_step, after_unit


class Plan(NamedTuple):
    """How the gradient of each leaf is found.

    Attributes:
      sites: by the leaf's number, its linear sites where its units are moved; empty where its weights are.
      taps: places whose units are moved, in the order of evaluation.
      forced: by the leaf's number, the primitives that no unit can stand for.
    """

    sites: tuple[tuple[Site, ...], ...]
    taps: tuple[Place, ...]
    forced: dict[int, tuple[str, ...]]


def activation(
    smoothing: float = 5e-3,
    central: bool = False,
    chunk_size: int = 64,
    axis_name: AxisName | None = None,
    chunk_bytes: int | None = None,
) -> Estimator:
    r"""Estimate the gradient unit by unit, from the losses of the examples.

    .. math:: g_w = \frac{1}{B} \sum_b A(x_b)^T \frac{l_b(z + \mu e_j) - l_b(z)}{\mu}

    It looks into the function (its jaxpr), as feature reuse does: a method for networks that one has, in which
    gradients do not exist or are not wanted, and not for a black box. Examples must not interact (batch norm in
    evaluation mode, no coupled losses): a few queries more move the activations of some of the examples alone, so that
    of any two each is moved without the other, and where the loss of one that is not moved changes, the gradient is NaN
    and a line on standard error says why. A leaf that has other uses than linear sites (inside `scan`, as a left
    operand, in an embedding) is moved weight by weight; a warning names it.

    Args:
      smoothing: mu > 0, in units of the activations. In 16 bits a step must stand out of their rounding: a warning says
        where it does not.
      central: take both sides.
      chunk_size: units evaluated at once; the result does not depend on it.
      axis_name: a mapped axis, `"query"` say, whose devices share the queries; all must see the same data. None for one
        device, or where each device estimates for itself. Each also asks for the losses at params, and the last round
        is filled up: queries count none of these twice.
      chunk_bytes: bytes that the values of the queries of a chunk may take: fewer go side by side where a layer's are
        large. What a loop holds inside, and a second side, are not counted. None to go by `chunk_size` alone.

    Returns:
      An `Estimator` for functions that give `[batch]` losses. It makes one query for each unit of the chosen sites and
      each weight of the other leaves (two with `central`), one for the losses at params and, where there are two
      examples or more, m + 1 for the probe, with m the least number for which (m over m / 2) reaches the batch: 12
      queries for 256 examples.

    Raises:
      ValueError: for smoothing, chunk_size or chunk_bytes that is not positive; when called, for leaves that are not
        floats or a function that gives a scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> inputs, params = jnp.ones((8, 5)), {"w": jnp.zeros((5, 2)), "b": jnp.zeros(2)}
      >>> def losses(params):
      ...     return jnp.sum((inputs @ params["w"] + params["b"] - 1.0) ** 2, axis=1)
      >>> found = activation(central=True)(jax.random.key(0), losses, params)
      >>> [round(g, 2) for g in found.gradient["b"].tolist()], int(found.queries)
      ([-2.0, -2.0], 11)

    Reference: Ren, Kornblith, Liao and Hinton, "Scaling Forward Gradient With Local Losses",
    https://arxiv.org/abs/2210.03310, 2023, for perturbed activations with random directions.
    """
    check_steps(smoothing, chunk_size, chunk_bytes)

    def estimate(key: Key, value_fn: Callable[[Params], tuple[Array, Any]], params: Params, state: State) -> Estimate:
        del key
        check_floating(params)
        leaves, structure = jax.tree.flatten(params)
        program = trace(value_fn, params)
        values = program.evaluate(leaves)
        losses, aux = program.result(values)
        if jnp.ndim(losses) != 1:
            raise ValueError(
                f"activation needs the losses of the examples, [batch], got shape {jnp.shape(losses)}: "
                "return them without their mean, or take coordinate"
            )
        batch, plan = losses.shape[0], _plan(program, leaves, losses.shape[0])
        _tell(plan, params)
        _tell_rounding(smoothing, [values[tap].dtype for tap in plan.taps])
        sides = (smoothing, -smoothing) if central else (smoothing,)

        def over(count: int, slope: Callable[[Array], Array], moved: Place) -> Array:
            together = within(chunk_size, chunk_bytes, program, values, moved)
            return answers(slope, jnp.arange(count), together, axis_name)

        cotangents = {}
        for tap in plan.taps:

            def unit_slopes(unit: Array, tap: Place = tap) -> Array:
                def side(step: float) -> tuple[Array, Array]:
                    # What was added is what is left of the step in the activation's precision.
                    found, made = after_unit(program, values, tap, unit, step)
                    return found, made.astype(losses.dtype)

                ahead, reached = side(smoothing)
                behind, left = side(-smoothing) if central else (losses, jnp.zeros_like(losses))
                apart = reached - left
                return jnp.where(apart != 0, (ahead - behind) / jnp.where(apart != 0, apart, 1), 0)

            found = over(int(np.prod(values[tap].shape[1:])), unit_slopes, tap)
            cotangents[tap] = (jnp.moveaxis(found, 0, 1).reshape(values[tap].shape) / batch).astype(values[tap].dtype)

        def of_leaf(number: int) -> Array:
            leaf, sites = leaves[number], plan.sites[number]
            if not leaf.size:
                return leaf
            if sites:
                parts = []
                for site in sites:
                    _, pull = jax.vjp(lambda leaf, site=site: program.along(site, values, leaf), leaf)
                    parts.append(pull(cotangents[site.tap])[0])
                return sum(parts[1:], parts[0])

            def weight_slope(index: Array) -> Array:
                ahead = after_step(program, values, number, index, smoothing)
                behind = after_step(program, values, number, index, -smoothing) if central else losses
                return jnp.mean((ahead - behind) / (smoothing * len(sides)))

            return over(leaf.size, weight_slope, program.leaves[number]).reshape(leaf.shape).astype(leaf.dtype)

        moved = sum(int(np.prod(values[tap].shape[1:])) for tap in plan.taps)
        moved += sum(leaf.size for number, leaf in enumerate(leaves) if not plan.sites[number])
        gradient = structure.unflatten([of_leaf(number) for number in range(len(leaves))])
        asked = probes(batch) if plan.taps else probes(1)
        if len(asked):
            together = min(within(chunk_size, chunk_bytes, program, values, tap) for tap in plan.taps)
            coupled = _coupled(program, values, plan.taps, asked, together)
            # Only where there is something to say: a call of the host takes longer than a small network's gradient.
            # Mapped over, both sides run, and the line must still tell the truth.
            jax.lax.cond(coupled, lambda: jax.debug.callback(_complain, coupled), lambda: None)
            gradient = jax.tree.map(lambda part: jnp.where(coupled, jnp.full_like(part, jnp.nan), part), gradient)
        queries = 1 + len(asked) + len(sides) * moved
        return Estimate(jnp.mean(losses), gradient, jnp.int32(queries), aux, state)

    return Estimator(init=lambda params: (), estimate=estimate)


def _plan(program: Program, leaves: Sequence[Array], batch: int) -> Plan:
    """Units or weights, whichever take fewer queries, the largest leaf first: later ones may find their taps chosen."""
    sites: list[tuple[Site, ...]] = [() for _ in leaves]
    taps: dict[Place, int] = {}
    forced = {}
    for number in sorted(range(len(leaves)), key=lambda number: -leaves[number].size):
        used = program.uses(number, batch)
        if used.others:
            forced[number] = used.others
            continue
        units = {site.tap: int(np.prod(program.shape_of(site.tap)[1:])) for site in used.sites}
        new = {tap: count for tap, count in units.items() if tap not in taps}
        if used.sites and sum(new.values()) < leaves[number].size:
            sites[number] = used.sites
            taps |= new
    return Plan(tuple(sites), tuple(sorted(taps)), forced)


def _tell(plan: Plan, params: Params) -> None:
    """Warn of leaves that no unit can stand for."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for number, others in plan.forced.items():
        name, size = jax.tree_util.keystr(paths[number]) or "the only leaf", jax.tree.leaves(params)[number].size
        warnings.warn(
            f"activation moves {name} weight by weight, {size} queries: it is used in "
            f"{', '.join(dict.fromkeys(others))}, where no unit stands for it",
            stacklevel=4,
        )


def _tell_rounding(smoothing: float, dtypes: Sequence[Any]) -> None:
    """Warn of steps that drown in the precision of the activations."""
    for dtype in dict.fromkeys(dtypes):
        coarse = 32 * float(jnp.finfo(dtype).eps)
        if smoothing < coarse:
            warnings.warn(
                f"activation's smoothing of {smoothing} is near the rounding of {dtype} activations: take {coarse:g}, "
                "or evaluate the network in float32",
                stacklevel=4,
            )


def probes(batch: int) -> np.ndarray:
    """Whom each query of the probe moves; `[queries, batch]` bool. Nobody in the first, which shows what rounding does.

    Every example is moved in another set of queries, all sets of one size: none holds another one, so that of any two
    examples each is moved once without the other. m queries do for (m over m / 2) examples (Sperner).
    """
    if batch < 2:
        return np.zeros((0, batch), bool)
    count = next(m for m in itertools.count(2) if math.comb(m, m // 2) >= batch)
    sets = itertools.islice(itertools.combinations(range(1, count + 1), count // 2), batch)
    found = np.zeros((count + 1, batch), bool)
    for example, queries in enumerate(sets):
        found[list(queries), example] = True
    return found


def _coupled(
    program: Program, values: dict[Place, Array], taps: Sequence[Place], halves: np.ndarray, together: int
) -> Array:
    """Whether some examples' activations move another one's loss; `[]` bool."""

    def moved(half: Array) -> Array:
        def delta(tap: Place) -> Array:
            value = values[tap]
            # A tenth and more, and no two alike, so that nothing cancels.
            steps = 0.1 * (1 + np.random.default_rng(1).random(value.shape[1:], np.float32))
            chosen = half.reshape(-1, *[1] * (value.ndim - 1))
            return jnp.where(chosen, jnp.asarray(steps, value.dtype), jnp.zeros_like(value))

        return program.after(values, {tap: delta(tap) for tap in taps}, outputs=program.outputs[:1])[0]

    found = jax.lax.map(moved, jnp.asarray(halves), batch_size=min(together, len(halves))).astype(jnp.float32)
    change = jnp.abs(found[1:] - found[0])
    own = jnp.max(jnp.where(halves[1:], change, 0))
    others = jnp.max(jnp.where(halves[1:], 0, change))
    return others > 1e-4 * own + 4 * jnp.finfo(jnp.float32).eps * jnp.max(jnp.abs(found[0]))


def _complain(coupled: Array) -> None:
    if not coupled:
        return
    print(
        "jaxrobust: activation needs examples that do not interact, and the loss of one moves with another: use batch "
        "norm in evaluation mode, losses that are separate and activations whose first axis is the examples, or take "
        "coordinate",
        file=sys.stderr,
    )
