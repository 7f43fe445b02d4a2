"""Laws that every rule keeps; a new rule is a new row."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import aggregate, rules
from jaxrobust.typing import Rule

WORKERS, FAULTY, COLUMNS = 11, 2, 5
EVERYONE, KEY = jnp.ones(WORKERS, bool), jax.random.key(7)
RATIO = FAULTY / (WORKERS - 2 * FAULTY)


class Row(NamedTuple):
    """A rule and what it promises.

    Attributes:
      rule: for n = 11 and f = 2.
      kappa: its published bound; infinity where none is.
      resists: whether f hostile vectors leave it bounded by the honest ones.
      moves: whether the result follows a translation.
      scales: whether it follows a scale.
      fewer: `(k) -> rule` of n - k workers that k dead ones leave; None where there is no such law.
      fixed: whether results depend on workers' numbers.
    """

    rule: Rule
    kappa: float = np.inf
    resists: bool = True
    moves: bool = True
    scales: bool = True
    fewer: object = None
    fixed: bool = False


def family(make, **promises):
    return Row(make(FAULTY), fewer=lambda dead: make(FAULTY - dead), **promises)


def same(rule, **promises):
    return Row(rule, fewer=lambda dead: rule, **promises)


KRUM, MEDIAN = 6 * (1 + RATIO), 4 * (1 + RATIO) ** 2
MIXED = 8 * FAULTY / (WORKERS - FAULTY)
TABLE = {
    "mean": same(rules.mean(), resists=False),
    "median": same(rules.median(), kappa=MEDIAN),
    "trimmed_mean": family(rules.trimmed_mean, kappa=6 * RATIO * (1 + RATIO)),
    "meamed": family(rules.meamed),
    "geometric_median": same(rules.geometric_median(), kappa=MEDIAN),
    "krum": family(rules.krum, kappa=KRUM),
    "krum_byzfl": family(rules.krum_byzfl, kappa=KRUM),
    "krum_l1": family(lambda faulty: rules.krum_mixtailor(faulty, 1)),
    "krum_l16": family(lambda faulty: rules.krum_mixtailor(faulty, 16)),
    "krum_linf": family(lambda faulty: rules.krum(faulty, p=np.inf)),
    "krum_noniid": family(rules.krum_noniid),
    "multi_krum": family(rules.multi_krum),
    "multi_krum_byzfl": family(rules.multi_krum_byzfl),
    # The last one is selected by one neighbor: two that are each other's nearest tie.
    "bulyan": Row(rules.bulyan(FAULTY), fixed=True),
    "minimum_diameter": family(rules.minimum_diameter),
    "monna": family(lambda faulty: rules.monna(faulty, trusted=5), fixed=True),
    "smea": family(rules.smea),
    "caf": family(rules.caf),
    "centered_clipping": same(rules.centered_clipping(1.0, steps=2), moves=False, scales=False),
    "mixing x median": family(
        lambda faulty: rules.nearest_neighbor_mixing(rules.median(), faulty=faulty), kappa=MIXED * (MEDIAN + 1)
    ),
    "mixing x krum": family(
        lambda faulty: rules.nearest_neighbor_mixing(rules.krum(faulty), faulty=faulty), kappa=MIXED * (KRUM + 1)
    ),
    "bucketing x median": Row(rules.bucketing(rules.median(), size=2), fixed=True),
    "clipping x median": same(rules.clipping(rules.median(), radius=1.0), moves=False, scales=False),
    "adaptive_clipping x median": family(
        lambda faulty: rules.adaptive_clipping(rules.median(), faulty=faulty), moves=False
    ),
    "mixtailor": Row(rules.mixtailor([rules.krum(FAULTY), rules.median(), rules.trimmed_mean(FAULTY)])),
}
JOINED = {
    name: jax.jit(lambda rows, alive, rule=row.rule: rule.apply(KEY, rows, alive, rule.init(*rows.shape), None))
    for name, row in TABLE.items()
}
every = pytest.mark.parametrize("name", TABLE)


def where(condition):
    return pytest.mark.parametrize("name", [name for name, row in TABLE.items() if condition(row)])


def joined(name, rows, alive=EVERYONE):
    column, _, weights = JOINED[name](jnp.asarray(rows, jnp.float32), jnp.asarray(alive))
    return np.asarray(column), np.asarray(weights)


at_once = jax.jit(aggregate, static_argnums=0)


@pytest.fixture(scope="module")
def rows():
    return np.asarray(jax.random.normal(jax.random.key(0), (WORKERS, COLUMNS)))


@every
def test_order_shift_and_scale_of_the_workers(name, rows):
    row, (whole, weights) = TABLE[name], joined(name, rows)
    if not row.fixed:
        order = np.random.default_rng(1).permutation(WORKERS)
        column, shares = joined(name, rows[order])
        np.testing.assert_allclose(column, whole, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(shares, weights[order], rtol=1e-4, atol=1e-5)
    if row.moves:
        np.testing.assert_allclose(joined(name, rows + 50)[0], whole + 50, atol=1e-4)
    if row.scales:
        for scale in (1e-6, 4.0, 1e6):
            close = {"rtol": 1e-3 if scale < 1e-3 else 1e-4, "atol": 1e-5 * scale}
            if not (name == "geometric_median" and scale < 1e-3):  # Its smoothing is a distance.
                np.testing.assert_allclose(joined(name, scale * rows)[0], scale * whole, **close)
    # Someone has a say.
    assert not np.allclose(joined(name, rows[::-1] ** 3)[0], whole)


@every
def test_weights_are_shares(name, rows):
    column, weights = joined(name, rows)
    assert weights.shape == (WORKERS,)
    assert np.all(weights >= 0)
    if TABLE[name].moves:
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    if name not in ("median", "trimmed_mean", "meamed", "bulyan", "mixtailor") and " x " not in name:
        np.testing.assert_allclose(weights @ rows, column, rtol=1e-4, atol=1e-5)


@functools.cache
def of_the_living(name):
    return TABLE[name].fewer(2) if name != "monna" else rules.monna(0, trusted=4)


@where(lambda row: row.fewer)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_dead_have_no_voice(name, bad, rows):
    sick, alive = rows.copy(), np.ones(WORKERS, bool)
    sick[2, 1], sick[9], alive[[2, 9]] = bad, bad, False
    column, weights = joined(name, sick, alive)
    left = np.delete(rows, [2, 9], axis=0)
    np.testing.assert_allclose(column, at_once(of_the_living(name), jnp.asarray(left), key=KEY), rtol=1e-4, atol=1e-5)
    assert np.all(weights[[2, 9]] == 0)
    # Another one's death is heard, if it had the most to say.
    whole, weights = joined(name, rows)
    assert not np.allclose(joined(name, rows, np.arange(WORKERS) != np.argmax(weights))[0], whole)


@every
def test_the_dead_are_silent_whatever_they_hold(name, rows):
    alive = np.arange(WORKERS) != 3
    silent = [joined(name, np.where(alive[:, None], rows, bad), alive) for bad in (0.0, np.nan, -np.inf)]
    for column, weights in silent[1:]:
        np.testing.assert_array_equal(column, silent[0][0])
        np.testing.assert_array_equal(weights, silent[0][1])
    assert np.isfinite(silent[0][0]).all()


@every
def test_nobody_alive_is_not_a_number(name, rows):
    column, weights = joined(name, rows, np.zeros(WORKERS, bool))
    assert np.isnan(column).all()
    np.testing.assert_array_equal(weights, 0)


@every
def test_faulty_vectors_leave_it_bounded(name, rows):
    honest = rows[FAULTY:]
    reach = 3 * np.max(np.abs(honest))
    for lie in (1e30, -3e38, 1e6, 100 * np.sign(rows[0])):
        lies = rows.copy()
        lies[:FAULTY] = lie
        assert (np.max(np.abs(joined(name, lies)[0])) < reach) == TABLE[name].resists, lie
    dead = rows.copy()
    dead[:FAULTY] = np.nan
    column, _ = joined(name, dead, np.isfinite(dead).all(axis=1))
    assert np.max(np.abs(column)) < reach


@where(lambda row: row.resists and row.moves)
def test_a_majority_of_lies_is_believed(name, rows):
    lies = rows.copy()
    lies[np.arange(WORKERS) != 3] = 1e6 * (1 + 1e-3 * rows[np.arange(WORKERS) != 3])
    assert np.max(np.abs(joined(name, lies)[0])) > 1e5


@every
def test_equal_vectors_are_their_own_aggregate(name):
    one = np.linspace(-0.3, 0.3, COLUMNS, dtype=np.float32)
    for vector in (one, 0 * one):
        column, _ = joined(name, np.tile(vector, (WORKERS, 1)))
        np.testing.assert_allclose(column, vector, rtol=1e-5, atol=1e-7)


@every
def test_colluders_that_agree_do_not_win(name, rows):
    lies = rows.copy()
    lies[:FAULTY] = 1e3
    bound = 3 * np.max(np.abs(rows))
    assert (np.max(np.abs(joined(name, lies)[0])) < bound) == TABLE[name].resists


@where(lambda row: np.isfinite(row.kappa))
def test_published_bound_over_all_subsets(name, rows):
    generator = np.random.default_rng(3)
    inputs = [rows, 10 * generator.standard_normal((WORKERS, COLUMNS)), np.abs(rows) ** 3]
    for spread, lie in itertools.product((0.1, 1.0), (0.5, 3.0, 1e3)):
        hostile = spread * rows
        hostile[:FAULTY] = lie
        inputs.append(hostile)
    sets = np.array(list(itertools.combinations(range(WORKERS), WORKERS - FAULTY)))

    def worst(column, x):
        means = x[sets].mean(axis=1)
        spreads = np.mean(np.sum((x[sets] - means[:, None]) ** 2, axis=2), axis=1)
        return np.max(np.sum((column - means) ** 2, axis=1) / np.maximum(spreads, 1e-12))

    for x in inputs:
        assert worst(joined(name, x)[0], x.astype(np.float64)) <= TABLE[name].kappa
    # The mean is within no bound.
    assert worst(inputs[-1].mean(axis=0), inputs[-1]) > 1e3


@every
def test_dtype_is_kept_and_traced_once(name, rows):
    rule, traces = TABLE[name].rule, []

    @jax.jit
    def apply(x, alive):
        traces.append(x.dtype)
        return rule.apply(KEY, x, alive, rule.init(*x.shape), None)

    for dtype, counted in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32)):
        column, state, weights = jax.eval_shape(apply, jax.ShapeDtypeStruct(rows.shape, dtype), EVERYONE)
        before = jax.eval_shape(lambda: rule.init(*rows.shape))
        assert column.dtype == dtype
        assert weights.dtype == counted
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), before)
    before = JOINED[name]._cache_size()
    joined(name, rows)
    joined(name, rows, np.arange(WORKERS) > 0)
    assert JOINED[name]._cache_size() == max(before, 1)


@pytest.mark.parametrize("name", ["median", "krum", "bulyan", "geometric_median", "smea", "mixing x krum"])
def test_bfloat16_is_counted_in_single_precision_and_eager_is_jitted(name, rows):
    coarse, rule = jnp.asarray(rows, jnp.bfloat16), TABLE[name].rule
    column, _, weights = rule.apply(KEY, coarse, EVERYONE, rule.init(*rows.shape), None)
    wanted, shares = joined(name, coarse.astype(jnp.float32))
    np.testing.assert_array_equal(column, wanted.astype(jnp.bfloat16))
    np.testing.assert_allclose(weights, shares, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "workers", "condition"),
    [
        (rules.krum(2), 6, "krum needs n >= 2f + 3 workers, got n = 6 with f = 2"),
        (rules.multi_krum(2), 6, "multi_krum needs n >= 2f + 3"),
        (rules.krum_byzfl(2), 4, r"krum_byzfl needs n >= 2f \+ 1"),
        (rules.krum_mixtailor(2), 4, r"krum_mixtailor needs n >= f \+ 3"),
        (rules.bulyan(1), 6, r"bulyan needs n >= 4f \+ 3 workers, got n = 6 with f = 1"),
        (rules.trimmed_mean(2), 4, "trimmed_mean needs n > 2f workers, got n = 4 with f = 2"),
        (rules.meamed(2), 4, "meamed needs n > 2f"),
        (rules.monna(1, trusted=4), 4, "monna needs n > 2f and n > trusted"),
        (rules.caf(2), 4, "caf needs n > 2f"),
        (rules.smea(2), 4, "smea needs n > 2f"),
        (rules.smea(15), 40, "smea looks at every set"),
        (rules.minimum_diameter(2), 4, "minimum_diameter needs n > 2f"),
        (rules.nearest_neighbor_mixing(rules.mean(), faulty=2), 4, "nearest_neighbor_mixing needs n > 2f"),
        (rules.adaptive_clipping(rules.mean(), faulty=2), 4, "adaptive_clipping needs n > 2f"),
        (rules.bucketing(rules.mean()), 4, "bucketing draws its groups: key must be given"),
        (rules.mixtailor([rules.mean()]), 4, "mixtailor draws a rule in every step: key must be given"),
        (rules.multi_krum(1, selected=9), 8, r"selected must be in \[1, n\]"),
    ],
)
def test_too_few_workers_are_refused(rule, workers, condition):
    with pytest.raises(ValueError, match=condition.replace("2f + 3", r"2f \+ 3")):
        jax.eval_shape(lambda x: aggregate(rule, x), jax.ShapeDtypeStruct((workers, 3), jnp.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.krum(-1), "faulty must be 0 or more, got -1"),
        (lambda: rules.krum(1, neighbors=0), "neighbors must be 1 or more"),
        (lambda: rules.krum(1, p=0.5), "p must be at least 1, got 0.5"),
        (lambda: rules.distances(jnp.zeros((2, 2)), 0.5), "p must be at least 1, got 0.5"),
        (lambda: rules.geometric_median(smoothing=0.0), "smoothing must be positive"),
        (lambda: rules.geometric_median(steps=0), "steps must be 1 or more"),
        (lambda: rules.centered_clipping(0.0), "radius must be positive"),
        (lambda: rules.centered_clipping(steps=0), "steps must be 1 or more"),
        (lambda: rules.clipping(rules.mean(), radius=-1.0), "radius must be positive"),
        (lambda: rules.bucketing(rules.mean(), size=0), "size must be 1 or more"),
        (lambda: rules.monna(1, trusted=-1), "trusted must be 0 or more"),
        (lambda: rules.comed_mixtailor(0), "nearest must be 1 or more"),
        (lambda: rules.mixtailor([]), "pool must hold a rule"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_by_hand():
    rows = jnp.array([[1.0, 8.0], [4.0, 0.0], [2.0, 2.0], [100.0, 4.0]])
    np.testing.assert_array_equal(at_once(rules.median(), rows), [3.0, 3.0])
    np.testing.assert_array_equal(at_once(rules.median(), rows[:3]), [2.0, 2.0])
    np.testing.assert_array_equal(at_once(rules.median(lower=True), rows), [2.0, 2.0])
    np.testing.assert_array_equal(at_once(rules.trimmed_mean(1), rows), [3.0, 3.0])
    np.testing.assert_allclose(at_once(rules.meamed(1), rows), [7 / 3, 2.0], rtol=1e-6)
    np.testing.assert_allclose(at_once(rules.minimum_diameter(1), rows), [7 / 3, 10 / 3], rtol=1e-6)
    # With nobody faulty, what is left is the mean; n = 2f + 1 in one dimension.
    for rule in (rules.trimmed_mean(0), rules.meamed(0), rules.caf(0), rules.smea(0), rules.monna(0), rules.bulyan(0)):
        np.testing.assert_allclose(at_once(rule, rows), np.mean(rows, axis=0), rtol=1e-5)
    line = jnp.array([[1.0], [2.0], [1e9]])
    for rule in (rules.trimmed_mean(1), rules.krum_byzfl(1), rules.median(), rules.caf(1), rules.smea(1)):
        assert 1 <= at_once(rule, line).item() <= 2


def test_lowest_number_wins_a_tie():
    square = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 9.0], [0.0, 0.0]])
    for rule in (rules.krum(1), rules.krum(1, p=1), rules.krum_byzfl(1)):
        assert jnp.argmax(rule.apply(None, square, jnp.ones(6, bool), (), None)[2]) == 0
    _, _, weights = rules.multi_krum(1, selected=2).apply(None, square, jnp.ones(6, bool), (), None)
    np.testing.assert_array_equal(weights, [0.5, 0, 0, 0, 0, 0.5])


@pytest.mark.parametrize("name", ["median", "multi_krum", "geometric_median"])
def test_gradients_pass_to_the_workers(name, rows):
    """An attacker may climb through a rule."""
    rule, wanted = TABLE[name].rule, np.arange(1.0, COLUMNS + 1)

    def along(x):
        return jnp.vdot(aggregate(rule, x), wanted.astype(np.float32))

    gradient = jax.jit(jax.grad(along))(rows)
    np.testing.assert_allclose(np.sum(gradient, axis=0), wanted, rtol=1e-3)
    assert not np.allclose(gradient, wanted / WORKERS)


def test_centered_clipping_remembers(rows):
    rule, state = rules.centered_clipping(0.5), jnp.zeros(COLUMNS)
    v = np.zeros(COLUMNS)
    for _ in range(3):
        apart = rows - v
        v = v + np.mean(apart * np.minimum(1, 0.5 / np.linalg.norm(apart, axis=1))[:, None], axis=0)
        column, state, weights = rule.apply(None, rows, EVERYONE, state, None)
        np.testing.assert_allclose(column, v, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(column, state)
        assert 0 < weights.sum() < 1
    _, kept, _ = rule.apply(None, rows, ~EVERYONE, state, None)
    np.testing.assert_array_equal(kept, state)


def test_caf_by_hand(rows):
    lies, f = rows.astype(np.float64), FAULTY
    lies[:f] *= 4
    c, least, best = np.ones(WORKERS), np.inf, None
    while c.sum() > WORKERS - 2 * f:
        mu = c @ lies / c.sum()
        values, vectors = np.linalg.eigh((lies - mu).T @ ((lies - mu) * c[:, None]) / c.sum())
        if values[-1] < least:
            least, best = values[-1], mu
        tau = ((lies - mu) @ vectors[:, -1]) ** 2
        c = c * np.maximum(1 - tau / tau[c > 0].max(), 0)
    np.testing.assert_allclose(joined("caf", lies)[0], best, rtol=1e-3, atol=1e-4)
    assert not np.allclose(best, lies.mean(axis=0), atol=1e-2)


def test_mixtailor_draws_uniformly_and_by_its_key():
    pool = [rules.stateless(lambda key, x, alive, axis, i=i: (x[i], jnp.eye(4)[i])) for i in (0, 1, 1, 2, 3, 3)]
    rule = rules.mixtailor(pool)
    rows, alive = jnp.arange(4.0)[:, None], jnp.ones(4, bool)
    draw = jax.jit(jax.vmap(lambda key: rule.apply(key, rows, alive, rule.init(4, 1), None)[0][0]))
    keys = jax.random.split(jax.random.key(5), 6000)
    drawn = np.asarray(draw(keys))
    np.testing.assert_array_equal(draw(keys), drawn)
    counts, expected = np.bincount(drawn.astype(int), minlength=4), 1000 * np.array([1, 2, 1, 2])

    def chi_square(wanted):
        return np.sum((counts - wanted) ** 2 / wanted)

    assert chi_square(expected) < 21.1  # 99.99 % for 3 degrees of freedom
    assert chi_square(np.full(4, 1500)) > 21.1


@pytest.mark.parametrize(
    "wrap",
    [lambda member: rules.mixtailor([member, member]), lambda member: rules.bucketing(member, size=1)],
    ids=["mixtailor", "bucketing"],
)
def test_what_is_inside_draws_with_a_key_of_its_own(wrap):
    def told(key, columns, alive, axis):
        bits = (jax.random.bits(key, (), jnp.uint32) >> 8).astype(jnp.float32)
        return jnp.full(columns.shape[1], bits), jnp.ones(columns.shape[0])

    rule, keys = wrap(rules.stateless(told)), jax.random.split(jax.random.key(2), 50)
    apply = jax.jit(
        jax.vmap(lambda key: rule.apply(key, jnp.ones((4, 1)), jnp.ones(4, bool), rule.init(4, 1), None)[0])
    )
    inside = np.asarray(apply(keys))[:, 0]
    outside = np.asarray(jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32) >> 8)(keys), np.float32)
    assert len(np.unique(inside)) == 50
    assert not np.isin(inside, outside).any()


def test_mixtailor_keeps_each_members_memory(rows):
    pool = [rules.centered_clipping(1.0), rules.mean(), rules.centered_clipping(2.0)]
    rule = rules.mixtailor(pool)
    state = rule.init(WORKERS, COLUMNS)
    for step in range(4):
        _, after, _ = rule.apply(jax.random.key(step), rows, EVERYONE, state, None)
        assert sum(not np.array_equal(a, b) for a, b in zip(after, state, strict=True) if len(a)) <= 1
        state = after


def test_pool_of_the_paper_fits_its_own_setting():
    pool = rules.mixtailor_pool(2)
    assert len(pool) == 64
    rule = rules.mixtailor(pool)
    shapes = jax.eval_shape(
        lambda key, x: aggregate(rule, x, key=key), jax.random.key(0), jax.ShapeDtypeStruct((12, 6), jnp.float32)
    )
    assert shapes.shape == (6,)


def test_two_members_of_the_papers_pool_are_moved_without_bound():
    pool, honest = rules.mixtailor_pool(2), jax.random.normal(jax.random.key(0), (10, 20))
    sent = jnp.concatenate([jnp.full((2, 20), 1e30), honest])
    moved = [rule for rule in dict.fromkeys(pool) if jnp.max(jnp.abs(aggregate(rule, sent, key=KEY))) > 10]
    assert [(pool.index(rule) - 48) // 4 for rule in moved] == [0, 3]  # Selected by Krum, and by the mean.
    assert all((pool.index(rule) - 48) % 4 == 3 for rule in moved)  # Joined by the mean.


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"stacked must be \[workers, dimension\], got shape \(3,\)"):
        aggregate(rules.mean(), jnp.zeros(3))


def test_a_mean_leaves_out_who_is_not_finite_however_many():
    rows = np.array([[3e38, -3e38, 1.0], [3e38, 3e38, 2.0], [3e38, 3e38, 3.0], [1.0, np.inf, 4.0]], np.float32)
    joined = jax.jit(lambda x: aggregate(rules.mean(), x))
    np.testing.assert_allclose(joined(rows), np.mean(rows[:3].astype(np.float64), axis=0), rtol=1e-6)
    np.testing.assert_allclose(joined(rows[:3]), joined(rows), rtol=1e-6)
    assert np.isnan(joined(np.full((2, 3), np.nan, np.float32))).all()
    # The control: a plain mean shows that somebody was not finite, and is no answer.
    assert not np.isfinite(np.mean(rows.astype(np.float64), axis=0)).all()
