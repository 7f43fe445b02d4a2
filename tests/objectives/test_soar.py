"""The second-order bound on random quadratics, its two norms, its products, and the objective built of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, geometry, objectives
from jaxrobust.attacks import losses as attack_losses
from jaxrobust.objectives.foar import input_gradient
from jaxrobust.objectives.soar import (
    bordered,
    frobenius_norm,
    largest_squared_length,
    second_order_bound,
    spectral_norm,
)

LINF, L2, RADIUS = geometry.linf(), geometry.l2(), 0.1
COUNT, D = 1000, 3


@pytest.fixture(scope="module")
def quadratics():
    """Symmetric H `[1000, 3, 3]` and g `[1000, 3]` of many sizes, in float64."""
    rng = np.random.default_rng(0)
    hessians = rng.standard_normal((COUNT, D, D)) * 10 ** rng.uniform(-1, 1, (COUNT, 1, 1))
    return (hessians + hessians.transpose(0, 2, 1)) / 2, rng.standard_normal((COUNT, D)) * 10 ** rng.uniform(
        -1, 1, (COUNT, 1)
    )


def slope_of(hessians, gradients):
    return lambda x: jnp.einsum("nij,nj->ni", hessians, x) + gradients


def dense(multiply, like):
    """Each example's whole matrix, column by column, as `[n, d + 1, d + 1]`."""
    count, size, multiply = len(like), like[0].size, jax.jit(multiply)
    columns = []
    for row in np.eye(size + 1):
        z = jnp.broadcast_to(jnp.asarray(row[:-1], like.dtype).reshape(like.shape[1:]), like.shape)
        top, last = multiply((z, jnp.full(count, row[-1], like.dtype)))
        columns.append(np.concatenate([np.asarray(top).reshape(count, -1), np.asarray(last)[:, None]], axis=1))
    return np.stack(columns, axis=-1)


def matrices(hessians, gradients):
    points = jnp.zeros(gradients.shape, gradients.dtype)
    return dense(bordered(slope_of(hessians, gradients), points), points)


def gain(hessians, gradients, deltas):
    """g'd + d'Hd / 2 of `[..., n, 3]` deltas."""
    quadratic = np.einsum("...ni,nij,...nj->...n", deltas, hessians, deltas)
    return np.einsum("...ni,ni->...n", deltas, gradients) + quadratic / 2


def brute_force(hessians, gradients, ball, radius):
    """The inner maximum: the best point of a grid with all corners, then ascent to the top from there."""
    axis = np.linspace(-1, 1, 9)
    grid = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 1, D)
    if ball.exponent == 2:
        outer = grid[np.abs(grid).max(-1)[:, 0] == 1]
        outer = outer / np.linalg.norm(outer, axis=-1, keepdims=True)
        grid = np.concatenate([outer, 0.5 * outer, np.zeros((1, 1, D))])
    values = gain(hessians, gradients, radius * np.broadcast_to(grid, (len(grid), *gradients.shape)))
    delta = radius * grid[values.argmax(0), 0]
    steps = 1 / np.linalg.norm(hessians, axis=(1, 2))[:, None]
    for _ in range(50):
        delta = delta + steps * (np.einsum("nij,nj->ni", hessians, delta) + gradients)
        if ball.exponent == 2:
            delta = delta * np.minimum(1, radius / np.linalg.norm(delta, axis=1, keepdims=True))
        delta = np.clip(delta, -radius, radius)
    found = gain(hessians, gradients, delta)
    assert np.all(found >= values.max(0) - 1e-9)
    return found


def test_the_expansion_is_a_quadratic_form_in_m(quadratics, x64):
    hessians, gradients = quadratics
    m = matrices(hessians, gradients)
    np.testing.assert_allclose(m, m.transpose(0, 2, 1), atol=1e-12)
    deltas = np.random.default_rng(1).standard_normal((COUNT, D))
    bordered_deltas = np.concatenate([deltas, np.ones((COUNT, 1))], axis=1)
    form = np.einsum("ni,nij,nj->n", bordered_deltas, m, bordered_deltas) / 2 - 1 / 2
    np.testing.assert_allclose(form, gain(hessians, gradients, deltas), rtol=1e-10, atol=1e-10)
    assert not np.allclose(form + 1 / 2, gain(hessians, gradients, deltas), rtol=1e-2)


@pytest.mark.parametrize("ball", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("radius", [0.1, 1.0])
def test_the_bound_is_above_the_inner_maximum(ball, radius, quadratics, x64):
    hessians, gradients = quadratics
    m = matrices(hessians, gradients)
    most = brute_force(hessians, gradients, ball, radius)
    spectral, frobenius = np.abs(np.linalg.eigvalsh(m)).max(1), np.linalg.norm(m, axis=(1, 2))
    squared = largest_squared_length(ball, radius, D)

    def above(norm, squared=squared):
        return np.all(second_order_bound(norm, squared) >= most - 1e-9)

    assert above(spectral)
    assert above(frobenius)
    # Half of the norm, the length of another ball, and the Hessian without its border.
    assert not above(spectral / 2)
    assert not above(spectral, squared / D)
    assert not above(np.abs(np.linalg.eigvalsh(hessians)).max(1))


def test_the_bound_is_attained(x64):
    """M = [d; 1] [d; 1]' has the norm |d|^2 + 1, and the maximum over |delta| <= |d| lies at d."""
    d = np.array([[0.3, -0.4, 1.2]])
    hessians, gradients = d[:, :, None] * d[:, None, :], d
    bound = second_order_bound(np.linalg.norm(matrices(hessians, gradients), 2, axis=(1, 2)), 1.69)
    np.testing.assert_allclose(bound, gain(hessians, gradients, d), rtol=1e-12)
    np.testing.assert_allclose(bound, 2.69**2 / 2 - 1 / 2, rtol=1e-12)
    np.testing.assert_allclose(brute_force(hessians, gradients, L2, 1.3), bound, rtol=1e-9)


def test_the_mean_square_is_the_squared_frobenius_norm(quadratics, x64):
    """Of one quadratic; the variance of |Mz|^2 is twice the sum of the eigenvalues' fourth powers."""
    hessians, gradients = (leaf[:1] for leaf in quadratics)
    draws, samples = 5000, 4
    eigenvalues = np.linalg.eigvalsh(matrices(hessians, gradients))[0]
    wide = bordered(slope_of(np.repeat(hessians, draws, 0), np.repeat(gradients, draws, 0)), jnp.zeros((draws, D)))
    keys = jax.random.split(jax.random.key(0), draws)
    one, four = (np.asarray(frobenius_norm(keys, wide, jnp.zeros((draws, D)), n)) for n in (1, samples))
    expected = np.sum(eigenvalues**2)
    for found, n in ((one, 1), (four, samples)):
        error = np.sqrt(2 * np.sum(eigenvalues**4) / (draws * n))
        assert abs(np.mean(found**2) - expected) < 4 * error
        # The mean of the root, and a draw that forgets the border.
        assert np.mean(found) ** 2 < expected - 4 * error
        assert abs(np.sum(np.linalg.eigvalsh(hessians[0]) ** 2) - expected) > 4 * error
    assert np.var(four) < np.var(one) / 2


def test_power_iteration_finds_the_spectral_norm(quadratics, x64):
    hessians, gradients = (jnp.asarray(leaf[:50]) for leaf in quadratics)
    points, keys = jnp.zeros((50, D)), jax.random.split(jax.random.key(0), 50)
    absolute = np.sort(np.abs(np.linalg.eigvalsh(matrices(hessians, gradients))), axis=1)
    exact, apart = absolute[:, -1], absolute[:, -2] < 0.95 * absolute[:, -1]

    def found(scale, iterations):
        multiply = bordered(slope_of(scale * hessians, gradients), points)
        fixed = bordered(slope_of(jax.lax.stop_gradient(scale) * hessians, gradients), points)
        return spectral_norm(keys, multiply, fixed, points, iterations)

    many, one = found(1.0, 300), found(1.0, 1)
    np.testing.assert_allclose(many[apart], exact[apart], rtol=1e-9)
    assert apart.sum() > 30
    assert np.all(many <= exact * (1 + 1e-12))
    assert np.all(one <= exact * (1 + 1e-12))
    assert not np.allclose(one[apart], exact[apart], rtol=1e-2)
    # The derivative with the vector held fixed is the norm's own.
    slope = jax.jvp(lambda scale: found(scale, 300), (1.0,), (1.0,))[1]
    up, down = (np.abs(np.linalg.eigvalsh(matrices(s * hessians, gradients))).max(1) for s in (1 + 1e-6, 1 - 1e-6))
    np.testing.assert_allclose(slope[apart], (up - down)[apart] / 2e-6, rtol=1e-5, atol=1e-7)
    assert not np.allclose(slope[apart], exact[apart], rtol=1e-2)


@pytest.fixture
def double(plain, batch, keys, x64):
    """The bent network, its batch and its gradient, in float64: (gradient, images, losses' arguments)."""
    model, params, state = jax.tree.map(lambda x: x.astype(jnp.float64) if hasattr(x, "astype") else x, plain)
    batch = batch._replace(inputs=batch.inputs.astype(jnp.float64))

    def gradient(images):
        return input_gradient(model, params, state, images, batch.targets)

    return gradient, batch, (keys, model, params, state)


def test_products_with_the_dense_hessian(double, x64):
    gradient, batch, (_, model, params, state) = double

    def loss(image, label):
        return attack_losses.cross_entropy(model.apply(params, state, image[None], train=False)[0], label[None])[0]

    hessians = jax.vmap(jax.hessian(loss))(batch.inputs, batch.targets).reshape(5, 4, 4)
    gradients = jax.vmap(jax.grad(loss))(batch.inputs, batch.targets).reshape(5, 4)
    found = dense(bordered(gradient, batch.inputs), batch.inputs)
    np.testing.assert_allclose(found[:, :4, :4], hessians, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found[:, :4, 4], gradients, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found[:, 4, :4], gradients, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found[:, 4, 4], 1)
    assert not np.allclose(found[:, :4, :4], np.roll(hessians, 1, axis=0), rtol=1e-2)


def test_finite_differences_approach_the_exact_product(double, x64):
    gradient, batch, _ = double
    exact = dense(bordered(gradient, batch.inputs), batch.inputs)
    far, near = (np.abs(dense(bordered(gradient, batch.inputs, h), batch.inputs) - exact).max() for h in (1e-2, 1e-3))
    assert 9 < far / near < 11
    assert far > 1e-3 * np.abs(exact).max()


def test_differences_see_kinks_that_products_do_not():
    """Two classes of the logits 0 and |x|: the Hessian of the loss knows the softmax alone, a difference the kink."""

    def gradient(images):
        return jax.grad(lambda x: jnp.sum(attack_losses.cross_entropy(jnp.abs(x) * jnp.array([[0.0, 1.0]]), labels)))(
            images
        )

    images, labels, z = jnp.full((1, 1), 0.001), jnp.array([0]), (-jnp.ones((1, 1)), jnp.zeros(1))
    exact, difference = (bordered(gradient, images, h)(z)[0] for h in (None, 0.01))
    np.testing.assert_allclose(exact, -0.25, rtol=1e-2)
    np.testing.assert_allclose(difference, -0.5 * 2 / 0.01, rtol=2e-2)


def test_losses_by_the_dense_matrix(double, x64):
    """With the norm iterated to its end nothing is random: cross-entropy and bound in NumPy."""
    gradient, batch, (keys, model, params, state) = double
    delta = jnp.asarray(0.05 * np.sign(np.random.default_rng(5).standard_normal(batch.inputs.shape)))
    points = batch.inputs + delta
    spectral = np.abs(np.linalg.eigvalsh(dense(bordered(gradient, points), points))).max(1)
    natural = attack_losses.cross_entropy(model.apply(params, state, points, train=False)[0], batch.targets)
    for ball, squared in ((LINF, 4 * RADIUS**2), (L2, RADIUS**2)):
        objective = objectives.soar(ball, RADIUS, power_iterations=300)
        found, (_, metrics) = objective.losses(delta, keys, model, params, state, batch)
        expected = (squared + 1) / 2 * spectral - 0.5
        np.testing.assert_allclose(metrics["regularizer"], expected, rtol=1e-6)
        np.testing.assert_allclose(found, natural + expected, rtol=1e-6)
        # At the clean image, and with the other ball's length.
        other = objective.losses(0 * delta, keys, model, params, state, batch)[0]
        assert not np.allclose(other, found, rtol=1e-3)
        assert not np.allclose(natural + (5 * RADIUS**2 - squared + 1) / 2 * spectral - 0.5, found, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"samples": 3}, {"finite_difference": 0.01}], ids=str)
def test_losses_by_what_is_drawn(options, double, x64):
    """The root of the mean of |Hz + sg|^2 + (g'z + s)^2 over the drawn z and s, at the perturbed image."""
    gradient, batch, (keys, model, params, state) = double
    delta = jnp.asarray(0.05 * np.sign(np.random.default_rng(5).standard_normal(batch.inputs.shape)))

    def expected(samples=1, finite_difference=None, points=batch.inputs + delta):
        slope, total = np.asarray(gradient(points)).reshape(5, -1), 0
        hessians = dense(bordered(gradient, points), points)[:, :-1, :-1]
        for number in range(samples):
            own = jax.vmap(jax.random.split)(jax.vmap(jax.random.fold_in, (0, None))(keys, number))
            z = jax.vmap(lambda key: jax.random.normal(key, points.shape[1:], points.dtype))(own[:, 0])
            s = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (), points.dtype))(own[:, 1]))
            product = np.einsum("nij,nj->ni", hessians, z.reshape(5, -1))
            if finite_difference is not None:
                ahead = np.asarray(gradient(points + finite_difference * z)).reshape(5, -1)
                product = (ahead - slope) / finite_difference
            last = np.sum(slope * z.reshape(5, -1), axis=1) + s
            total = total + np.sum((product + s[:, None] * slope) ** 2, axis=1) + last**2
        return (4 * RADIUS**2 + 1) / 2 * np.sqrt(total / samples) - 0.5

    found, (_, metrics) = objectives.soar(LINF, RADIUS, **options).losses(delta, keys, model, params, state, batch)
    natural = attack_losses.cross_entropy(
        model.apply(params, state, batch.inputs + delta, train=False)[0], batch.targets
    )
    np.testing.assert_allclose(metrics["regularizer"], expected(**options), rtol=1e-7)
    np.testing.assert_allclose(found, natural + expected(**options), rtol=1e-7)
    # Of other draws, of another product, and at the clean image.
    for other in ({"samples": 2}, {"finite_difference": 0.5}, {"points": batch.inputs}):
        assert not np.allclose(expected(**options | other), metrics["regularizer"], rtol=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"samples": 3}, {"finite_difference": 0.01}, {"power_iterations": 200}], ids=str
)
def test_gradients_of_the_parameters(options, double, x64):
    """Third derivatives, against differences of the losses along one direction."""
    _, batch, (keys, model, params, state) = double
    objective = objectives.soar(LINF, RADIUS, **options)
    delta = jnp.asarray(0.05 * np.sign(np.random.default_rng(5).standard_normal(batch.inputs.shape)))
    rng = np.random.default_rng(6)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), params)

    @jax.jit
    def along(amount):
        moved = jax.tree.map(lambda x, d: x + amount * d, params, direction)
        found, (_, metrics) = objective.losses(delta, keys, model, moved, state, batch)
        return found.mean(), metrics["regularizer"].mean()

    slope, part = jax.jacrev(along)(0.0)
    difference, of_part = ((up - down) / 2e-5 for up, down in zip(along(1e-5), along(-1e-5), strict=True))
    assert float(slope) == pytest.approx(float(difference), rel=1e-5)
    assert float(part) == pytest.approx(float(of_part), rel=1e-5)
    # The regularizer's part is not that of the loss alone.
    assert abs(float(part)) > 1e-2 * abs(float(slope))


def test_the_regularizer_is_each_examples_own(normalized, keys, batch):
    """By the running statistics: another image in the batch moves a loss in training, and no regularizer."""
    model, params, state = normalized
    objective = objectives.soar(LINF, RADIUS)

    def run(inputs, model=model):
        @jax.jit
        def losses(inputs):
            return objective.losses(jnp.zeros_like(inputs), keys, model, params, state, batch._replace(inputs=inputs))

        found, (_, metrics) = losses(inputs)
        return found, metrics["regularizer"]

    before, after = run(batch.inputs), run(batch.inputs.at[0].set(0.9))
    np.testing.assert_allclose(after[1][1:], before[1][1:], rtol=1e-6)
    assert not np.allclose(after[1][0], before[1][0], rtol=1e-2)
    assert not np.allclose(after[0][1:], before[0][1:], rtol=1e-3)
    training = model._replace(apply=lambda p, s, x, *, train: model.apply(p, s, x, train=True))
    assert not np.allclose(run(batch.inputs.at[0].set(0.9), training)[1][1:], run(batch.inputs, training)[1][1:])


def test_it_begins_half_a_radius_away_and_steps_uphill(plain, keys, batch):
    """The delta less half the radius along the slope's sign is the start: anywhere in the ball of half the radius."""
    model, params, state = plain

    def logits_fn(images):
        return model.apply(params, state, images, train=False)[0]

    # A start of half the radius, moved by next to nothing.
    half = attacks.pgd(LINF, RADIUS / 2, steps=1, step_size=1e-9)(keys, logits_fn, batch.inputs, batch.targets)
    uphill = jnp.sign(input_gradient(model, params, state, half, batch.targets))
    delta = objectives.soar(LINF, RADIUS).prepare(keys, model, params, state, batch)
    np.testing.assert_allclose(delta - RADIUS / 2 * uphill, half - batch.inputs, atol=1e-6)
    assert np.abs(delta + RADIUS / 2 * uphill).max() > RADIUS / 2
    # Another attack takes its place.
    own = objectives.soar(LINF, RADIUS, attack=attacks.fgsm(LINF, RADIUS))
    np.testing.assert_allclose(np.abs(own.prepare(keys, model, params, state, batch)), RADIUS, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"samples": 2, "finite_difference": 0.01}, {"power_iterations": 2}], ids=str)
def test_dtype_is_kept(dtype, options, plain, keys, batch, x64):
    model, params, state = plain
    objective = objectives.soar(LINF, RADIUS, **options)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    batch = batch._replace(inputs=batch.inputs.astype(dtype))

    def run(params):
        delta = objective.prepare(keys, model, params, state, batch)
        return delta, objective.losses(delta, keys, model, params, state, batch)[0]

    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(run, params))} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((LINF, 0.0), {}, r"radius must be positive, got 0\.0"),
        ((L2, float("nan")), {}, "radius must be positive, got nan"),
        ((geometry.l1(), 0.1), {}, "geometry must be linf or l2, got l1: take foar for any other"),
        ((geometry.fourier_linf(), 0.1), {}, "geometry must be linf or l2, got fourier_linf"),
        ((geometry.spectral(), 0.1), {}, "geometry must be linf or l2, got spectral"),
        ((LINF, 0.1), {"samples": 0}, "samples must be at least 1, got 0"),
        ((LINF, 0.1), {"power_iterations": -1}, "power_iterations must not be negative, got -1"),
        ((LINF, 0.1), {"samples": 2, "power_iterations": 3}, "with power_iterations they must be 1, got 2"),
        ((LINF, 0.1), {"finite_difference": 0.0}, r"finite_difference must be positive, got 0\.0: take None"),
    ],
)
def test_bad_settings_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        objectives.soar(*arguments, **options)
