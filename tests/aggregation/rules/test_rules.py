"""Laws that every rule keeps; a new rule is a new row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import aggregate, rules

RULES = {
    "mean": rules.mean(),
    "median": rules.median(),
    "trimmed_mean": rules.trimmed_mean(3),
}
ROBUST = ("median", "trimmed_mean")


@pytest.fixture
def rows():
    return jax.random.normal(jax.random.key(0), (7, 5))


def applied(rule, rows, alive):
    return rule.apply(jax.random.key(1), rows, jnp.asarray(alive), rule.init(*rows.shape), None)


@pytest.mark.parametrize("name", RULES)
def test_order_shift_and_scale_of_the_workers(name, rows):
    whole = aggregate(RULES[name], rows)
    np.testing.assert_allclose(aggregate(RULES[name], rows[::-1]), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(aggregate(RULES[name], 3 * rows + 2), 3 * whole + 2, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x: aggregate(RULES[name], x))(rows), whole, rtol=1e-6, atol=1e-7)
    assert not np.allclose(aggregate(RULES[name], rows.at[0].add(5.0)), whole)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_the_dead_have_no_voice(name, bad, rows):
    left = aggregate(RULES[name], jnp.delete(rows, jnp.array([2, 6]), axis=0))
    sick = rows.at[2, 1].set(bad).at[6].set(bad)
    if name != "trimmed_mean":  # Its dead count as faulty.
        np.testing.assert_allclose(aggregate(RULES[name], sick), left, rtol=1e-6, atol=1e-7)
    alive = jnp.array([True, True, False, True, True, True, False])
    _, _, weights = applied(RULES[name], sick, alive)
    np.testing.assert_array_equal(np.asarray(weights) > 0, alive)
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-6)
    # Without the mask the dead decide.
    assert not np.allclose(applied(RULES[name], sick, jnp.ones(7, bool))[0], left)


@pytest.mark.parametrize("name", RULES)
def test_nobody_alive_is_not_a_number(name, rows):
    column, _, _ = applied(RULES[name], rows, jnp.zeros(7, bool))
    assert np.isnan(column).all()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_is_kept_and_one_worker_is_itself(name, dtype):
    rows = jnp.tile(jnp.array([[1.0, -2.0]], dtype), (7, 1))
    assert aggregate(RULES[name], rows).dtype == dtype
    np.testing.assert_array_equal(aggregate(RULES[name], rows), rows[0])


def test_robust_rules_stay_among_the_honest(rows):
    lies = rows.at[:3].set(1e30)
    for name, rule in RULES.items():
        inside = np.all(aggregate(rule, lies) <= jnp.max(rows[3:], axis=0))
        assert inside == (name in ROBUST)


def test_median_of_odd_and_even_counts():
    rows = jnp.array([[1.0, 8.0], [4.0, 0.0], [2.0, 2.0], [100.0, 4.0]])
    np.testing.assert_array_equal(aggregate(rules.median(), rows), [3.0, 3.0])
    np.testing.assert_array_equal(aggregate(rules.median(), rows[:3]), [2.0, 2.0])


def test_median_and_mean_agree_with_recorded_numbers(shared):
    with jax.enable_x64(True):
        for name in ("n11_f2_d50_gauss", "n10_f0_d12_ties", "n12_f2_d100_cluster"):
            golden = np.load(shared / "golden" / "byzantine" / f"{name}.npz")
            found = aggregate(rules.median(), jnp.asarray(golden["X"]))
            np.testing.assert_allclose(found, golden["np_median"], rtol=1e-9)
            found = aggregate(rules.mean(), jnp.asarray(golden["X"]))
            np.testing.assert_allclose(found, golden["np_average"], rtol=1e-9, atol=1e-12)


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"stacked must be \[workers, dimension\], got shape \(3,\)"):
        aggregate(rules.mean(), jnp.zeros(3))
