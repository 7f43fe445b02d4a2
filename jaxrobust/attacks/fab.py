r"""The fast adaptive boundary attack: the nearest misclassified image, not only one within a radius.

With :math:`x_0` the clean image of class y and :math:`x_1` the current one, an iteration takes the class's boundary to
be the plane :math:`z_j - z_y + \langle w, x - x_1\rangle = 0` with :math:`w = \nabla(z_j - z_y)` at :math:`x_1`,
projects both images on it within the box (displacements :math:`d_0, d_1`), and goes beyond it, biased to the clean one:

.. math:: x_1 \leftarrow \mathrm{clip}[(1 - \alpha)(x_1 + \eta d_1) + \alpha(x_0 + \eta d_0)], \quad
   \alpha = \min\left(\alpha_{\max}, \frac{\|d_1\|}{\|d_1\| + \|d_0\|}\right)

The class j is the one whose plane is nearest, :math:`|z_j - z_y| / \|w_j\|_*` (FAB), or a fixed one (FAB-T). Where the
new image is misclassified, it is kept if it is the closest yet, and the next iteration begins on the way back,
:math:`x_1 \leftarrow x_0 + \beta(x_1 - x_0)`.

Reference: Croce and Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
https://arxiv.org/abs/1907.02044, 2020 (algorithm 1); "Reliable Evaluation of Adversarial Robustness with an Ensemble of
Diverse Parameter-free Attacks", https://arxiv.org/abs/2003.01690, 2020 (FAB-T).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust.attacks import hyperplane
from jaxrobust.attacks.search import Answer, Search, SearchState, misclassified
from jaxrobust.attacks.settings import check_ball, check_counts
from jaxrobust.geometry import Geometry
from jaxrobust.typing import Array, Key


class FabMemory(NamedTuple):
    """What FAB keeps beside its point.

    Attributes:
      target: int32, the class it goes for; -1 for the nearest at each iteration.
      distance: of the closest misclassified image so far, within the radius or not; infinite before the first.
      made: int32, iterations made.
    """

    target: Array
    distance: Array
    made: Array


def fab(
    geometry: Geometry,
    radius: float,
    *,
    steps: int = 100,
    targets: int = 0,
    restarts: int = 1,
    largest_share: float = 0.1,
    overshoot: float = 1.05,
    backward: float = 0.9,
) -> Search:
    """Build a minimum-norm attack.

    An iteration asks the model twice: for gradients, one for each wrong class or that of the target, and whether the
    image that it made of them is misclassified. An infinite radius makes it a minimum-norm attack proper: what it finds
    is the closest image that its first successful run came across, and `memory.distance` is how far that is. With a
    radius, `memory.distance` says so for examples that are not broken.

    Args:
      geometry: `linf()`, `l2()` or `l1()`.
      radius: largest norm of a perturbation, in units of the images' range [0, 1]; may be `math.inf`.
      steps: iterations of a run, at least 1; 100 in AutoAttack.
      targets: 0 for FAB; for FAB-T how many classes are attacked in turn, those with the largest clean logits after the
        largest; 9 in AutoAttack, and never more than there are other classes.
      restarts: runs for each target, or runs without targets; all but the first begin at a random point, half a radius
        away. AutoAttack takes 1, and 5 without targets in its version "plus".
      largest_share: alpha_max, the most that the clean image weighs in; 0.1 in the paper.
      overshoot: eta, how far beyond the plane it goes; 1.05 in the paper.
      backward: beta, what is left of a perturbation on the way back; 0.9 in the paper.

    Returns:
      The search; what it finds is the closest image within the radius, the clean one where there is none. With one
      restart it draws nothing.

    Raises:
      ValueError: for another norm, a number out of its range, or restarts in an infinite radius.

    Example:
      >>> import jax, jax.numpy as jnp, math
      >>> from jaxrobust import attacks, geometry
      >>> attack = attacks.fab(geometry.linf(), math.inf, steps=5)
      >>> logits = lambda images: jnp.stack([images.sum(1), 2 - images.sum(1)], 1)
      >>> attack(jax.random.key(0), logits, jnp.full((1, 2), 0.75), jnp.array([0])).round(3).tolist()
      [[0.49900001287460327, 0.49900001287460327]]

    Reference: Croce and Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
    https://arxiv.org/abs/1907.02044, 2020.
    """
    check_ball(geometry, radius, infinite=True)
    projections = {"linf": hyperplane.linf, "l2": hyperplane.l2, "l1": hyperplane.l1}
    if geometry.name not in projections:
        raise ValueError(f"geometry must be linf, l2 or l1, got {geometry.name}: use pgd for other norms")
    check_counts(steps=steps, restarts=restarts)
    check_counts(0, targets=targets)
    if restarts > 1 and math.isinf(radius):
        raise ValueError(f"restarts must be 1 in an infinite radius, got {restarts}: they begin half a radius away")
    if not 0 <= largest_share <= 1:
        raise ValueError(f"largest_share must be in [0, 1], got {largest_share}")
    if not overshoot >= 1:
        raise ValueError(f"overshoot must be at least 1, got {overshoot}: below it no plane is crossed")
    if not 0 < backward <= 1:
        raise ValueError(f"backward must be in (0, 1], got {backward}")
    project = projections[geometry.name]

    def attacked(classes: int) -> int:
        return min(targets, classes - 1)

    def random_start(key: Key, image: Array) -> Array:
        direction = geometry.sample(key, image.shape).astype(image.dtype)
        return jnp.clip(image + radius / 2 * direction / geometry.norm(direction), 0, 1)

    def init(
        key: Key, image: Array, label: Array, logits: Array, run: Array, start: Array | None = None
    ) -> SearchState:
        del label
        per_start = max(attacked(len(logits)), 1)
        target = jnp.int32(-1) if targets == 0 else jnp.argsort(-logits)[run % per_start + 1].astype(jnp.int32)
        if start is None:
            start = image if restarts == 1 else jnp.where(run < per_start, image, random_start(key, image))
        memory = FabMemory(target, jnp.asarray(jnp.inf, image.dtype), jnp.int32(0))
        return SearchState(start, image, jnp.bool_(False), jnp.bool_(False), memory)

    def loss(memory: FabMemory, logits: Array, label: Array) -> Array:
        """How much a class is ahead of the own one: the target, or each of the others."""
        if targets > 0:
            return logits[memory.target] - logits[label]
        others = jnp.arange(len(logits) - 1, dtype=label.dtype)
        return logits[jnp.where(others < label, others, others + 1)] - logits[label]

    def move(point: Array, image: Array, gap: Array, normal: Array) -> Array:
        """One iteration: beyond the plane, biased to the clean image."""
        gaps = jnp.stack([gap, gap + jnp.sum(normal * (image - point))])
        there, back = jax.vmap(project, (0, None, 0))(jnp.stack([point, image]), normal, gaps)
        far, farther = jnp.maximum(geometry.norm(there), 1e-8), jnp.maximum(geometry.norm(back), 1e-8)
        share = jnp.minimum(far / (far + farther), largest_share)
        return point + overshoot * (there + share * (back - there)) + share * (image - point)

    def tell(state: SearchState, image: Array, label: Array, answer: Answer) -> SearchState:
        del label
        gap, normal = answer.value, answer.gradient
        if targets == 0:
            nearest = jnp.argmin(jnp.abs(gap) / (jax.vmap(geometry.dual_norm)(normal) + 1e-12))
            gap, normal = gap[nearest], normal[nearest]
        point = jnp.clip(move(state.point, image, gap.astype(image.dtype), normal), 0, 1)
        return state._replace(point=point, memory=state.memory._replace(made=state.memory.made + 1))

    def look(state: SearchState, image: Array, label: Array, logits: Array) -> SearchState:
        memory, point = state.memory, state.point
        wrong = misclassified(logits, label)
        distance = geometry.norm(point - image)
        closer = wrong & (distance < memory.distance)
        inside = closer & (distance <= radius)
        return SearchState(
            point=jnp.where(wrong, jnp.clip(image + backward * (point - image), 0, 1), point),
            found=jnp.where(inside, point, state.found),
            broken=state.broken | inside,
            done=memory.made >= steps,
            memory=memory._replace(distance=jnp.where(closer, distance, memory.distance)),
        )

    return Search(
        name="fab" if targets == 0 else "fab_t",
        geometry=geometry,
        radius=radius,
        init=init,
        tell=tell,
        look=look,
        loss=loss,
        runs=lambda classes: max(attacked(classes), 1) * restarts,
    )
