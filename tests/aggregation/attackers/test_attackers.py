"""Laws that every attacker keeps; a new attacker is a new row. Then what each one sends, by hand and as recorded."""

import math
from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrobust.aggregation import attackers, rules
from jaxrobust.aggregation.attackers import directions, harms

WORKERS, FAULTY, DIMENSION = 12, 2, 20
ATTACKERS = {
    "bit_flip": attackers.bit_flip(),
    "constant": attackers.constant(3.0),
    "epsilon_reverse": attackers.epsilon_reverse(),
    "fang_krum": attackers.fang_krum(rules.krum(FAULTY)),
    "fang_trimmed_mean": attackers.fang_trimmed_mean(),
    "gaussian": attackers.gaussian(),
    "inner_product_manipulation": attackers.inner_product_manipulation(),
    "little_is_enough": attackers.little_is_enough(1.5),
    "mimic": attackers.mimic(1),
    "min_max": attackers.min_max(),
    "min_sum": attackers.min_sum(),
    "not_finite": attackers.not_finite(),
    "omniscient": attackers.omniscient([rules.median(), rules.mean()]),
    "optimized": attackers.optimized(rules.median()),
    "sign_flip": attackers.sign_flip(2.0),
}
DRAW = ("bit_flip", "fang_trimmed_mean", "gaussian")
"""Those whose rows differ by key."""
OWN = ("bit_flip", "sign_flip")
"""Those that look at the faulty workers' own gradients, and at no others."""
EQUIVARIANT = sorted(set(ATTACKERS) - {"bit_flip", "constant", "gaussian", "not_finite"})
"""Those that send c times as much where all gradients are c times as large."""
KEY = jax.random.key(7)


def gradients(seed=0, dtype=jnp.float32):
    """Honest rows around one vector, and the faulty workers' own."""
    rows = 0.3 + jax.random.normal(jax.random.key(seed), (WORKERS, DIMENSION), jnp.float32)
    return rows[FAULTY:].astype(dtype), rows[:FAULTY].astype(dtype)


def test_the_table_holds_every_attacker():
    other = {"Attacker", "Direction", "Harm", "colluding", "label_flip", "largest_deviation"}
    public = {name for name, value in vars(attackers).items() if callable(value) and not name.startswith("_")}
    assert public - other == set(ATTACKERS)


TRACED = Counter()


@cache
def compiled(name):
    """One compilation of each attacker for all tests of the table; it counts its traces."""

    def counted(key, honest, own):
        TRACED[name] += 1
        return ATTACKERS[name](key, honest, own)

    return jax.jit(counted)


def alike(a, b):
    return np.array_equal(a, b, equal_nan=True)


@pytest.mark.parametrize("name", ATTACKERS)
def test_shape_dtype_trace_and_compilation(name):
    attack = ATTACKERS[name]
    for dtype in (jnp.float32, jnp.bfloat16):
        assert jax.eval_shape(attack, KEY, *gradients(dtype=dtype)).dtype == dtype
    honest, own = gradients()
    sent = compiled(name)(KEY, honest, own)
    assert sent.shape == (FAULTY, DIMENSION)
    np.testing.assert_allclose(sent, attack(KEY, honest, own), rtol=2e-5, atol=1e-6)
    assert alike(sent, compiled(name)(jax.random.key(8), *gradients(1))) == (name in ("constant", "not_finite"))
    assert TRACED[name] == 1


@pytest.mark.parametrize("name", ATTACKERS)
def test_a_key_gives_the_same_and_only_those_that_draw_need_one(name):
    attack, (honest, own) = compiled(name), gradients()
    sent = attack(KEY, honest, own)
    assert alike(sent, attack(KEY, honest, own))
    assert alike(sent, attack(jax.random.key(8), honest, own)) == (name not in DRAW)
    assert alike(sent[0], sent[1]) == (name not in (*DRAW, *OWN))
    if name in DRAW:
        with pytest.raises(ValueError, match=r"key must be given for an attacker that draws, got None: pass jax"):
            ATTACKERS[name](None, honest, own)
    else:
        assert jax.eval_shape(ATTACKERS[name], None, honest, own).shape == own.shape


@pytest.mark.parametrize("name", ATTACKERS)
def test_who_is_looked_at(name):
    attack, (honest, own) = compiled(name), gradients()
    sent, (others, mine) = attack(KEY, honest, own), gradients(1)
    assert alike(sent, attack(KEY, honest, mine)) == (name not in OWN)
    assert alike(sent, attack(KEY, others, own)) == (name in (*OWN, "constant", "gaussian", "not_finite"))


@pytest.mark.parametrize("name", ATTACKERS)
def test_units_do_not_matter(name):
    attack, (honest, own) = compiled(name), gradients()
    sent, scaled = attack(KEY, honest, own), attack(KEY, 4 * honest, 4 * own)
    assert np.allclose(scaled, 4 * sent, rtol=1e-4, atol=1e-5) == (name in EQUIVARIANT)


COLLUDERS = sorted({*ATTACKERS} - {*DRAW, *OWN, "constant", "not_finite"})


@pytest.mark.parametrize("name", COLLUDERS)
def test_arguments_that_are_no_matrices_are_refused(name):
    honest, own = gradients()
    with pytest.raises(
        ValueError, match=r"honest must be \[n - f, d\] and own \[f, d\], of a row or more, got \(20,\)"
    ):
        ATTACKERS[name](KEY, honest[0], own)
    with pytest.raises(ValueError, match=r"got \(10, 20\), \(2, 19\)"):
        ATTACKERS[name](KEY, honest, own[:, 1:])
    with pytest.raises(ValueError, match=r"got \(10, 20\), \(0, 20\)"):
        ATTACKERS[name](KEY, honest, own[:0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attackers.sign_flip(0.0), r"scale must be positive, got 0\.0"),
        (lambda: attackers.inner_product_manipulation(-1.0), r"epsilon must be positive, got -1\.0"),
        (lambda: attackers.epsilon_reverse(0.0), r"epsilon must be positive, got 0\.0"),
        (lambda: attackers.little_is_enough(math.nan), r"z must be finite, got nan"),
        (lambda: attackers.largest_deviation(12, 7), r"z must be given for 7 faulty of 12 workers, got None"),
        (lambda: attackers.largest_deviation(2, 1), r"z must be given for 1 faulty of 2 workers, got None"),
        (lambda: attackers.mimic(-1), r"worker must not be negative, got -1"),
        (lambda: attackers.mimic(10)(None, *gradients()), r"worker must be less than the 10 honest ones, got 10"),
        (lambda: attackers.gaussian(0.0), r"sigma must be positive, got 0\.0"),
        (lambda: attackers.not_finite(1.0), r"value must not be finite, got 1\.0: constant\(1\.0\) sends it"),
        (lambda: attackers.constant(math.inf), r"value must be finite, got inf: not_finite\(inf\) sends it"),
        (lambda: attackers.bit_flip(-1), r"bit must not be negative, got -1"),
        (lambda: attackers.bit_flip(8)(KEY, *gradients()), r"bit must be less than the 8 of float32's exponent, got 8"),
        (lambda: attackers.fang_trimmed_mean(1.0), r"reach must be more than 1, got 1\.0"),
        (lambda: attackers.omniscient([]), r"pool must hold a rule or more, got none"),
        (lambda: attackers.omniscient([rules.mean()], directions=()), r"directions must hold one or more, got none"),
        (lambda: directions.spread(jnp.ones((1, 3))), r"honest must have two rows or more for their spread, got 1"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_two_papers_scale_the_reversed_mean_differently():
    honest, own = gradients()
    paper, other = attackers.epsilon_reverse(0.1), attackers.inner_product_manipulation(0.1 * 10 / 2)
    np.testing.assert_allclose(paper(None, honest, own), other(None, honest, own), rtol=1e-6)
    assert not np.allclose(paper(None, honest, own), attackers.inner_product_manipulation(0.1)(None, honest, own))
    # With one faulty worker of two the two scales are one.
    two = attackers.inner_product_manipulation(0.1)(None, honest[:1], own[:1])
    np.testing.assert_allclose(paper(None, honest[:1], own[:1]), two, rtol=1e-6)


def test_the_paper_s_deviation_outbids_as_many_honest_as_a_majority_needs():
    """A majority of 50 is 26: beside 12 hostile ones, 14 of 38 honest must lie beyond the value that is sent."""
    columns, honest = 20_000, 38
    rows = jax.random.normal(KEY, (honest, columns))
    z = attackers.largest_deviation(50, 12)

    def beyond(attack):
        return float(jnp.mean(rows < attack(None, rows, jnp.zeros((12, columns)))[0]))

    # A deviation over its own sample's spread is Student's t, after this change of variable.
    residual = z / math.sqrt(1 - 1 / honest)
    share = scipy.stats.t.sf(residual * math.sqrt((honest - 2) / (honest - 1 - residual**2)), honest - 2)
    error = math.sqrt(share * (1 - share) / (honest * columns))
    assert abs(beyond(attackers.little_is_enough()) - share) < 4 * error
    assert abs(share - 14 / 38) < 0.005
    assert abs(beyond(attackers.little_is_enough(0.9 * z)) - share) > 4 * error
    assert attackers.largest_deviation(12, 2) == 0


def test_fang_s_values_lie_just_beyond_the_honest():
    honest = jnp.array([[1.0, -4.0, -1.0, 0.1], [2.0, -2.0, 3.0, -3.0]])
    sent = np.asarray(attackers.fang_trimmed_mean(2.0)(KEY, honest, jnp.zeros((500, 4))))
    low, high = np.array([0.5, -2.0, -2.0, 0.1]), np.array([1.0, -1.0, -1.0, 0.2])
    assert np.all((sent >= low) & (sent <= high))
    # They fill the intervals: of 500 uniform draws all miss a 20th at one end with probability 7e-12.
    assert np.all(sent.min(0) < low + (high - low) / 20)
    assert np.all(sent.max(0) > high - (high - low) / 20)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64])
def test_one_bit_of_one_coordinate_of_the_exponent(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        own = jax.random.normal(jax.random.key(1), (300, DIMENSION), jnp.float32).astype(dtype)
        layout = jnp.finfo(dtype)
        word = np.dtype(f"uint{layout.bits}")
        attack, third = jax.jit(attackers.bit_flip()), jax.jit(attackers.bit_flip(2))
        changed = np.asarray(own).view(word) ^ np.asarray(attack(KEY, own, own)).view(word)
        flipped = changed.max(axis=1)
        assert np.all(np.sum(changed != 0, axis=1) == 1)
        place = np.log2(flipped.astype(np.float64))
        # Every bit of the exponent comes: 300 draws miss one of 11 with a probability below 5e-12.
        assert sorted(set(place)) == list(range(layout.nmant, layout.nmant + layout.nexp))
        # Every coordinate too: one is missed with a probability below 5e-6.
        assert len(set(np.argmax(changed, axis=1))) == DIMENSION
        chosen = np.asarray(third(KEY, own, own)).view(word) ^ np.asarray(own).view(word)
        assert np.all(chosen.max(axis=1) == 1 << (layout.nmant + 2))


def test_noise_has_its_spread_and_each_worker_its_own():
    sent = attackers.gaussian(3.0)(KEY, jnp.zeros((1, 100_000)), jnp.zeros((2, 100_000)))
    # The mean square of 200,000 normal draws has the relative standard error sqrt(2 / 200,000).
    assert abs(float(jnp.mean(sent**2)) / 9 - 1) < 4 * math.sqrt(2 / 200_000)
    assert abs(float(jnp.mean(sent[0] * sent[1])) / 9) < 4 / math.sqrt(100_000)


def farthest(bound, low=0.0, high=1e6):
    """The largest strength that keeps a bound, by bisection: the published search, run to its end."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if bound(middle) else (low, middle)
    return low


@pytest.mark.parametrize("direction", [directions.opposite, directions.spread, directions.opposite_sign])
def test_min_max_and_min_sum_go_as_far_as_the_published_search(direction):
    farther, more = jax.jit(attackers.min_max(direction)), jax.jit(attackers.min_sum(direction))
    with jax.enable_x64(True):
        for seed in range(3):
            honest, own = gradients(seed, jnp.float64)
            rows = np.asarray(honest)
            push, squares = np.asarray(direction(honest)), np.sum((rows[:, None] - rows[None]) ** 2, axis=-1)

            def distances(strength, rows=rows, push=push):
                return np.sum((rows.mean(0) + strength * push - rows) ** 2, axis=1)

            gamma = farthest(lambda s, d=distances, q=squares: d(s).max() <= q.max())
            sent = farther(None, honest, own)
            np.testing.assert_allclose(sent[0], rows.mean(0) + gamma * push, rtol=1e-9, atol=1e-12)
            gamma = farthest(lambda s, d=distances, q=squares: d(s).sum() <= q.sum(1).max())
            sent = more(None, honest, own)
            np.testing.assert_allclose(sent[0], rows.mean(0) + gamma * push, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_min_max_stays_within_the_largest_honest_distance(offset):
    """Also in float32 far from the origin, where a Gram matrix would lose the distances."""
    honest, own = gradients()
    honest = honest + offset
    rows = np.asarray(honest, np.float64)
    largest = np.sqrt(np.max(np.sum((rows[:, None] - rows[None]) ** 2, axis=-1)))

    def reach(attack):
        return np.max(np.linalg.norm(rows - np.asarray(attack(None, honest, own)[0], np.float64), axis=1)) / largest

    rounding = 1e-6 if offset == 0 else 2e-5
    assert abs(reach(attackers.min_max()) - 1) < rounding
    # Where all are as far as they may be, min-sum goes beyond, or less far: another bound.
    assert abs(reach(attackers.min_sum()) - 1) > 1e-3
    assert reach(attackers.little_is_enough(0.1)) < 1 - 1e-3


def test_without_spread_the_mean_is_sent():
    equal = jnp.ones((4, 3))
    for attack in (attackers.min_max(), attackers.min_sum(), attackers.little_is_enough(2.0)):
        np.testing.assert_array_equal(attack(None, equal, jnp.zeros((1, 3))), [[1.0, 1.0, 1.0]])


GOLDEN = {
    "att_signflip": attackers.inner_product_manipulation(1.0),
    "att_ipm_0.1": attackers.inner_product_manipulation(0.1),
    "att_ipm_2.0": attackers.inner_product_manipulation(2.0),
    "att_ipm_10.0": attackers.inner_product_manipulation(10.0),
    # byzfl goes above the mean.
    "att_alie_0.5": attackers.little_is_enough(-0.5),
    "att_alie_1.5": attackers.little_is_enough(-1.5),
    "att_alie_3.0": attackers.little_is_enough(-3.0),
    "att_mimic0": attackers.mimic(0),
    "att_mimic1": attackers.mimic(1),
    "att_inf": attackers.not_finite(math.inf),
    "mt_att_reverse": attackers.epsilon_reverse(1.0),
    "mt_att_epsrev_0.1": attackers.epsilon_reverse(0.1),
    "mt_att_epsrev_0.5": attackers.epsilon_reverse(0.5),
    "mt_att_epsrev_10.0": attackers.epsilon_reverse(10.0),
    "mt_att_alittle_0.3": attackers.little_is_enough(0.3),
    "mt_att_alittle_1.5": attackers.little_is_enough(1.5),
    "mt_att_alittle_3.0": attackers.little_is_enough(3.0),
}


@pytest.fixture(scope="module")
def recorded(shared):
    """Every file of recorded numbers with hostile workers, read once."""
    paths = sorted((shared / "golden" / "byzantine").glob("*.npz"))
    files = {path.stem: np.load(path) for path in paths}
    return {name: dict(file) for name, file in files.items() if int(file["f"])}


@pytest.mark.parametrize("name", GOLDEN)
def test_agreement_with_recorded_numbers(name, recorded):
    seen = 0
    with jax.enable_x64(True):
        for file in recorded.values():
            if name not in file:
                continue
            honest, own = jnp.asarray(file["H"]), jnp.asarray(file["B"])
            sent = GOLDEN[name](None, honest, own)
            scale = np.abs(file["H"]).max()
            np.testing.assert_allclose(sent, np.broadcast_to(file[name], own.shape), rtol=1e-9, atol=1e-12 * scale)
            if scale > 0:
                assert name == "att_inf" or not np.allclose(GOLDEN[name](None, 1.01 * honest, own)[0], file[name])
            seen += 1
    assert seen >= 10


def test_a_flipped_mean_is_the_recorded_sign_flip(recorded):
    file = recorded["n12_f2_d100_gauss"]
    with jax.enable_x64(True):
        mean = jnp.mean(jnp.asarray(file["H"]), axis=0, keepdims=True)
        sent = attackers.sign_flip()(None, jnp.asarray(file["H"]), mean)
    np.testing.assert_allclose(sent[0], file["att_signflip"], rtol=1e-9)


OPTIMAL = {
    "optipm": directions.opposite,
    "optalie": lambda honest: -directions.spread(honest),
}
KNOWN = {"krum": rules.krum, "median": lambda faulty: rules.median(), "trmean": rules.trimmed_mean}


@pytest.mark.parametrize("attack", OPTIMAL)
@pytest.mark.parametrize("rule", KNOWN)
def test_a_search_does_at_least_the_harm_of_the_recorded_one(attack, rule, recorded):
    """Twenty evaluations are recorded, of doubled and shortened steps: they stop where ours goes on."""
    better = 0
    with jax.enable_x64(True):
        for name in ("n12_f2_d100_gauss", "n13_f3_d33_gauss"):
            file = recorded[name]
            honest, own = jnp.asarray(file["H"]), jnp.asarray(file["B"])
            known, mean = KNOWN[rule](int(file["f"])), jnp.mean(honest, axis=0)

            @jax.jit
            def harm(row, known=known, honest=honest, own=own, mean=mean):
                stacked = jnp.concatenate([jnp.broadcast_to(row, own.shape), honest])
                alive = jnp.ones(len(stacked), bool)
                return harms.displacement(known.apply(None, stacked, alive, (), None)[0], mean)

            theirs = float(harm(jnp.asarray(file[f"att_{attack}_{rule}_none"])))
            ours = float(harm(jax.jit(attackers.optimized(known, OPTIMAL[attack]))(None, honest, own)[0]))
            assert ours >= theirs * (1 - 1e-9)
            # Without an attack, or with zeros, the harm is less.
            assert ours > float(harm(mean))
            better += ours > theirs * (1 + 1e-6)
    assert rule != "krum" or better
