"""Numbers that ByzFL and MixTailor's code gave for the same inputs.

Not compared: outputs of a random start (`caf_seed0`, `smea_seed0`, `geomed_20it_seed3`, `bulyan_*geomed*`), and what
poisoned rows did to the recorded rules (kinds inf, neginf, nan, onenan): there ours must equal the rule of the rows left.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.aggregation import aggregate, rules

KINDS = ("gauss", "cluster", "scale", "zeros", "ties", "huge")
POISONED = ("inf", "neginf", "nan", "onenan")
SHAPES = ("n11_f2_d50", "n20_f4_d40", "n7_f3_d9")
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


@pytest.mark.parametrize("shape", SHAPES)
def test_recorded_numbers(shape, shared):
    with jax.enable_x64(True):
        files = {kind: np.load(shared / "golden" / "byzantine" / f"{shape}_{kind}.npz") for kind in KINDS}
        n, f = int(files["gauss"]["n"]), int(files["gauss"]["f"])
        compared = 0
        for name, rule in recorded(n, f).items():
            if name not in files["gauss"]:
                continue
            joined = jax.jit(lambda rows, rule=rule: aggregate(rule, rows))
            for kind, golden in files.items():
                if name not in golden or (kind == "ties" and name in ORDERED):
                    continue
                found, wanted = np.asarray(joined(golden["X"])), golden[name].reshape(-1)
                scale = np.max(np.abs(wanted))
                np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * scale, err_msg=f"{name} {kind}")
                compared += 1
    assert compared > 100
