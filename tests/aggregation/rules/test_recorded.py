"""Numbers that ByzFL and MixTailor's code gave for the same inputs.

Not compared: outputs of a random start (`caf_seed0`, `smea_seed0`, `geomed_20it_seed3`, `bulyan_*geomed*`), what
poisoned rows did to the recorded rules (kinds inf, neginf, nan, onenan). The recorded Bulyan drops places of an order
where it means to drop workers, and may select a vector twice: see `bulyan_by_hand`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import aggregate, rules

KINDS = ("gauss", "cluster", "scale", "zeros", "ties", "huge")
SHAPES = ("n11_f2_d50", "n7_f3_d9", pytest.param("n20_f4_d40", marks=pytest.mark.slow))
# All rows that a rule gets, one after the other.
ROWS = rules.stateless(lambda key, columns, alive, axis: (columns.reshape(-1), jnp.ones(alive.shape[0])))
# Two values equally far from the median: which one is taken depends on the order of a partition.
ORDERED = {"np_meamed", "mt_comed_beta3", "mt_comed_beta4", "np_pre_nnm"}


def recorded(n, f):
    """Rules by the names under which their results were recorded."""
    step, last = {"np_geomed_nu0.1_T3": (0.1, 3), "np_geomed_nu1e-6_T100": (1e-6, 100)}, n - 1
    inner = {
        "median": rules.median(),
        "trmean": rules.trimmed_mean(f),
        "krum": rules.krum_byzfl(f),
        "geomed_nu0.1_T3": rules.geometric_median(smoothing=0.1, steps=3, from_origin=True),
    }
    return {
        "np_average": rules.mean(),
        "np_multikrum": rules.multi_krum_byzfl(f),
        "np_meamed": rules.meamed(f),
        "np_monna_idx0": rules.monna(f),
        f"np_monna_idx{last}": rules.monna(f, trusted=last),
        "np_mda": rules.minimum_diameter(f),
        "exact_smea": rules.smea(f),
        "np_cc_L1_tau100": rules.centered_clipping(100.0),
        "np_cc_L3_tau1": rules.centered_clipping(1.0, steps=3),
        "np_pre_nnm": rules.nearest_neighbor_mixing(ROWS, faulty=f),
        "np_pre_clip2": rules.clipping(ROWS, radius=2.0),
        "np_pre_arc": rules.adaptive_clipping(ROWS, faulty=f),
        "mt_comed_beta1": rules.comed_mixtailor(1),
        f"mt_comed_beta{max(3, n // 5)}": rules.comed_mixtailor(max(3, n // 5)),
        **{name: rules.geometric_median(smoothing=a, steps=b, from_origin=True) for name, (a, b) in step.items()},
        **{f"np_{name}": rule for name, rule in inner.items()},
        **{f"np_nnm+{name}": rules.nearest_neighbor_mixing(rule, faulty=f) for name, rule in inner.items()},
        **{f"np_arc+{name}": rules.adaptive_clipping(rule, faulty=f) for name, rule in inner.items()},
        **{f"mt_krum_l{p}": rules.krum_mixtailor(f, p) for p in (1, 2, 3, 4, 8, 16)},
    }


def joined_by(table):
    """All rules in one program: what they have in common is compiled once."""
    return jax.jit(lambda rows: {name: aggregate(rule, rows) for name, rule in table.items()})


@pytest.mark.parametrize("shape", SHAPES)
def test_recorded_numbers(shape, shared):
    with jax.enable_x64(True):
        files = {kind: np.load(shared / "golden" / "byzantine" / f"{shape}_{kind}.npz") for kind in KINDS}
        n, f = int(files["gauss"]["n"]), int(files["gauss"]["f"])
        joined = joined_by({name: rule for name, rule in recorded(n, f).items() if name in files["gauss"]})
        compared = 0
        for kind, golden in files.items():
            for name, found in joined(golden["X"]).items():
                if name not in golden or (kind == "ties" and name in ORDERED):
                    continue
                wanted = golden[name].reshape(-1)
                scale = np.max(np.abs(wanted))
                np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * scale, err_msg=f"{name} {kind}")
                compared += 1
    assert compared > 100


def test_recorded_numbers_in_single_precision(shared):
    files = {kind: np.load(shared / "golden" / "byzantine" / f"n7_f3_d9_{kind}.npz") for kind in ("gauss", "cluster")}
    named = {name.replace("np_", "t32_"): rule for name, rule in recorded(7, 3).items() if "np_" in name}
    joined = joined_by({name: rule for name, rule in named.items() if name in files["gauss"]})
    for kind, golden in files.items():
        for name, found in joined(golden["X"].astype(np.float32)).items():
            wanted = golden[name].reshape(-1)
            np.testing.assert_allclose(found, wanted, atol=1e-4 * np.max(np.abs(wanted)), err_msg=f"{name} {kind}")


def test_second_call_of_centered_clipping(shared):
    with jax.enable_x64(True):
        golden = np.load(shared / "golden" / "byzantine" / "n11_f2_d50_gauss.npz")
        rule, rows, alive = rules.centered_clipping(2.0), jnp.asarray(golden["X"]), jnp.ones(11, bool)
        first, state, _ = rule.apply(None, rows, alive, rule.init(11, 50), None)
        second, _, _ = rule.apply(None, rows, alive, state, None)
        np.testing.assert_allclose(second, golden["np_cc_L1_tau2_secondcall"], rtol=1e-9)
        assert not np.allclose(first, second)


def test_bucketing_by_a_recorded_permutation(shared):
    from jaxrobust.aggregation.rules.bucketing import groups

    with jax.enable_x64(True):
        golden = np.load(shared / "golden" / "byzantine" / "n11_f2_d50_gauss.npz")
        for size in (1, 2, 3):
            order = jnp.asarray(golden[f"bucketing_s{size}_perm"])
            mixing = np.asarray(groups(order, jnp.ones(11, bool), size, jnp.float64))
            np.testing.assert_allclose(mixing @ golden["X"], golden[f"np_bucketing_s{size}"], rtol=1e-9)


def krum_by_hand(rows, f):
    apart = np.sort(np.linalg.norm(rows[:, None] - rows[None], axis=2), axis=1)
    return rows[np.argmin(np.sum(apart[:, 1 : 1 + len(rows) - f - 2], axis=1))]


def bulyan_by_hand(rows, f, select, join, *, as_recorded):
    """The definition, or what the recorded code did: it masks the sorted order, not the workers."""
    left, chosen = np.ones(len(rows), bool), []
    for _ in range(len(rows) - 2 * f):
        order = np.argsort(np.linalg.norm(rows - select(rows[left], f), axis=1))
        first = order[left][0] if as_recorded else order[left[order]][0]
        left[first] = False
        chosen.append(first)
    return join(rows[chosen], f)


def test_bulyan_by_hand_and_as_recorded(shared):
    by_hand = {
        "krum": krum_by_hand,
        "comed": lambda rows, f: np.sort(rows, axis=0)[(len(rows) - 1) // 2],
        "fedavg": lambda rows, f: np.mean(rows, axis=0),
    }
    ours = {"krum": rules.krum_mixtailor(2), "comed": rules.median(lower=True), "fedavg": rules.mean()}
    differ = 0
    with jax.enable_x64(True):
        golden = {kind: np.load(shared / "golden" / "byzantine" / f"n11_f2_d50_{kind}.npz") for kind in KINDS[:3]}
        for selector, select in by_hand.items():
            for aggregator, join in by_hand.items():
                rule = rules.bulyan(
                    2, power=1.0, selector=None if selector == "krum" else ours[selector], aggregator=ours[aggregator]
                )
                joined = jax.jit(lambda rows, rule=rule: aggregate(rule, rows))
                for kind, file in golden.items():
                    rows = file["X"]
                    defined = bulyan_by_hand(rows, 2, select, join, as_recorded=False)
                    wrong = bulyan_by_hand(rows, 2, select, join, as_recorded=True)
                    case = f"{selector} {aggregator} {kind}"
                    np.testing.assert_allclose(joined(rows), defined, rtol=1e-9, atol=1e-12, err_msg=case)
                    np.testing.assert_allclose(wrong, file[f"mt_bulyan_{selector}_{aggregator}"], rtol=1e-9)
                    differ += not np.allclose(wrong, defined)
    assert differ
