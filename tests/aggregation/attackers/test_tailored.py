"""Each attack harms the rule it is made for, and a random draw among rules withstands what breaks one of them."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import aggregate, attackers, rules
from jaxrobust.aggregation.attackers import directions, harms

WORKERS, FAULTY, DIMENSION = 12, 2, 60
KEY = jax.random.key(0)
ZEROS = attackers.constant(0.0)
POOL = (rules.krum(FAULTY), rules.median(), rules.trimmed_mean(FAULTY))


def alike(seed=0, dimension=DIMENSION):
    """Honest gradients of equal mean, whose noise is longer than it: all that Krum can tell is how near they are."""
    own, rest = jax.random.split(jax.random.key(seed))
    honest = 0.5 + jax.random.normal(rest, (WORKERS - FAULTY, dimension))
    return honest, 0.5 + jax.random.normal(own, (FAULTY, dimension))


def divided(seed=0):
    """Each coordinate is 1 to one half of the honest, -0.2 to the other, as where data differ: the mean is 0.4."""
    honest = WORKERS - FAULTY
    rank = jnp.argsort(jax.random.uniform(jax.random.key(seed), (honest, DIMENSION)), axis=0)
    rows = jnp.where(rank < honest // 2, 1.0, -0.2) + 0.01 * jax.random.normal(jax.random.key(seed + 100), rank.shape)
    signs = jax.random.rademacher(jax.random.key(seed + 200), (DIMENSION,), jnp.float32)
    return rows * signs, jnp.zeros((FAULTY, DIMENSION))


@cache
def forging(attack):
    return jax.jit(lambda honest, own: attack(KEY, honest, own))


@cache
def joining(rule):
    return jax.jit(lambda sent, honest: aggregate(rule, jnp.concatenate([sent, honest]), key=KEY))


def under(attack, rule, honest, own):
    return joining(rule)(forging(attack)(honest, own), honest)


def measured(make, attack, rule, harm):
    """The harm of an attack on a rule, for gradients of four seeds."""
    drawn = [make(seed) for seed in range(4)]
    return np.array([harm(under(attack, rule, *each), jnp.mean(each[0], axis=0)) for each in drawn])


def alignment(make, attack, rule):
    """<aggregate, honest mean> over the mean's squared length: 1 without harm, below 0 descent turns to ascent."""
    return measured(make, attack, rule, lean)


def lean(aggregated, mean):
    return jnp.vdot(aggregated, mean) / jnp.vdot(mean, mean)


SMALL, LARGE, MIMIC = attackers.epsilon_reverse(0.1), attackers.epsilon_reverse(10.0), attackers.mimic(3)
KRUM, MEDIAN, TRIMMED_MEAN = POOL
MEAN, FANG_KRUM = rules.mean(), attackers.fang_krum(KRUM)


@pytest.mark.parametrize("make", [alike, divided])
def test_a_small_reverse_steers_krum_away(make):
    assert np.all(alignment(make, SMALL, KRUM) < -0.4)
    # Krum sees through a large one, and zeros in its place do not turn it.
    assert np.all(alignment(make, LARGE, KRUM) > 0)
    assert np.all(alignment(make, ZEROS, KRUM) >= 0)


def test_a_large_reverse_breaks_the_median_of_divided_workers():
    assert np.all(alignment(divided, LARGE, MEDIAN) < -0.2)
    assert np.all(alignment(divided, LARGE, TRIMMED_MEAN) > 0.2)
    # Where all are alike, two of twelve shift it and do not turn it; nor does a copied worker among the divided.
    assert np.all(alignment(alike, LARGE, MEDIAN) > 0.2)
    assert np.all(alignment(divided, MIMIC, MEDIAN) > 0)


@pytest.mark.parametrize(("make", "attack", "broken"), [(alike, SMALL, KRUM), (divided, LARGE, MEDIAN)])
def test_a_uniform_draw_among_rules_points_on_under_attacks_that_break_one(make, attack, broken):
    each = {rule: alignment(make, attack, rule) for rule in POOL}
    assert np.all(np.mean(list(each.values()), axis=0) > 0.05)
    assert [rule for rule in POOL if np.any(each[rule] < 0)] == [broken]


def test_a_draw_among_rules_that_break_together_is_broken():
    """A small reverse that equals the values of half of the divided workers takes Krum and the median at once."""
    each = [alignment(divided, SMALL, rule) for rule in POOL]
    assert np.all(np.mean(each, axis=0) < 0)


OMNISCIENT, OVER_KRUM = attackers.omniscient(POOL), attackers.omniscient([KRUM])


@pytest.mark.parametrize("make", [alike, divided])
def test_omniscient_harms_the_pool_more_than_any_fixed_attack_and_krum_less_than_one_made_for_it(make):
    def expected(attack):
        return np.mean([alignment(make, attack, rule) for rule in POOL], axis=0)

    worst = expected(OMNISCIENT)
    for other in (MIMIC, SMALL, LARGE, attackers.little_is_enough(1.5), OVER_KRUM):
        assert np.all(worst <= expected(other) + 1e-3)
    assert np.all(worst < expected(ZEROS) - 0.1)
    assert np.all(alignment(make, OVER_KRUM, KRUM) <= alignment(make, OMNISCIENT, KRUM) + 1e-3)


# An attack, the rule it is made for, and what is harmed.
HARMFUL = {
    "fang_krum": (FANG_KRUM, KRUM, harms.reversal),
    "fang_trimmed_mean": (attackers.fang_trimmed_mean(), TRIMMED_MEAN, harms.displacement),
    "fang_trimmed_mean, median": (attackers.fang_trimmed_mean(), MEDIAN, harms.displacement),
    "inner_product_manipulation": (attackers.inner_product_manipulation(0.5), KRUM, harms.reversal),
    "little_is_enough": (attackers.little_is_enough(1.5), TRIMMED_MEAN, harms.displacement),
    "little_is_enough, median": (attackers.little_is_enough(1.5), MEDIAN, harms.displacement),
    "min_max": (attackers.min_max(), TRIMMED_MEAN, harms.displacement),
    "min_max, opposite": (attackers.min_max(directions.opposite), MEDIAN, harms.reversal),
    "min_sum": (attackers.min_sum(), TRIMMED_MEAN, harms.displacement),
    "gaussian": (attackers.gaussian(), MEAN, harms.displacement),
    "sign_flip": (attackers.sign_flip(10.0), MEAN, harms.reversal),
    "not_finite": (attackers.not_finite(), rules.stateless(lambda k, x, a, i: (jnp.mean(x, 0), a)), None),
    "optimized": (attackers.optimized(MEDIAN), MEDIAN, harms.displacement),
    "optimized, Krum": (
        attackers.optimized(KRUM, harm=harms.reversal),
        KRUM,
        harms.reversal,
    ),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_an_attack_harms_the_rule_it_is_made_for_more_than_zeros_do(name):
    attack, rule, harm = HARMFUL[name]
    if harm is None:
        honest, own = alike()
        broken = rule.apply(None, jnp.concatenate([attack(KEY, honest, own), honest]), jnp.ones(12), (), None)[0]
        assert np.isnan(broken).all()
        # Left out, it is no harm at all.
        np.testing.assert_allclose(under(attack, rules.mean(), honest, own), jnp.mean(honest, 0), rtol=1e-5, atol=1e-6)
        return

    excess = measured(alike, attack, rule, harm) - measured(alike, ZEROS, rule, harm)
    assert np.all(excess > 0.05)


def test_mimic_makes_one_of_divided_workers_count_more():
    """Krum of equal copies takes them, so that one worker's data is all that is learned from."""
    honest, own = divided()
    np.testing.assert_array_equal(under(MIMIC, KRUM, honest, own), honest[3])
    assert not np.array_equal(under(LARGE, KRUM, honest, own), honest[3])


@pytest.mark.parametrize("make", [alike, divided])
def test_fang_s_lambda_is_the_largest_that_krum_selects(make):
    honest, own = make()
    sent = forging(FANG_KRUM)(honest, own)
    np.testing.assert_array_equal(jnp.sign(sent[0]), -jnp.sign(jnp.mean(honest, axis=0)))
    for factor, chosen in ((1.0, True), (1.0001, False)):
        assert np.array_equal(joining(KRUM)(factor * sent, honest), factor * sent[0]) == chosen
