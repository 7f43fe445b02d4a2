"""Every rule at n = 32 workers and a million coordinates, against ByzFL's NumPy rules, in one run.

    pip install 'byzfl==0.0.11'
    JAX_PLATFORMS=cpu python tests/benchmarks/rules.py [RULE ...]

ByzFL's package imports torch and torchvision. Where they cannot be installed, `pip install --no-deps byzfl==0.0.11` is
enough: its aggregators are then imported by themselves, with an empty module in place of what is missing, for its NumPy
rules call neither. Each row: the median of ROUNDS alternating rounds and their range, of ours and of ByzFL's; the ratio
of the medians, and the range of the ratios round by round; seconds to compile, apart. The last column is the ratio of
our time to one read of the n x d values, as the mean of NumPy's `copyto` says. Rules that look at every set of n - f
workers take f = 2, others f = 6. What ByzFL does not finish within LIMIT seconds is run once and not waited for again.
"""

import contextlib
import importlib
import importlib.util
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.aggregation import aggregate, rules

WORKERS, COLUMNS, FAULTY, SETS, ROUNDS, LIMIT = 32, 1_000_000, 6, 2, 5, 20.0


def byzfl_modules():
    """ByzFL's aggregators and pre-aggregators."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("byzfl.aggregators.aggregators"), importlib.import_module(
            "byzfl.aggregators.preaggregators"
        )
    for name in [name for name in sys.modules if name.startswith("byzfl")]:
        del sys.modules[name]
    root = importlib.util.find_spec("byzfl").submodule_search_locations[0]
    for name in ("byzfl", "byzfl.aggregators", "byzfl.utils"):
        package = types.ModuleType(name)
        package.__path__ = [f"{root}/{name.partition('.')[2].replace('.', '/')}"]
        sys.modules[name] = package
    return importlib.import_module("byzfl.aggregators.aggregators"), importlib.import_module(
        "byzfl.aggregators.preaggregators"
    )


def table():
    """Rows: a name, our rule, and ByzFL's function of a matrix."""
    theirs, before = byzfl_modules()

    def after(pre, rule):
        return lambda rows: rule(pre(rows))

    f = FAULTY
    return {
        "mean": (rules.mean(), theirs.Average()),
        "median": (rules.median(), theirs.Median()),
        "trimmed_mean": (rules.trimmed_mean(f), theirs.TrMean(f)),
        "meamed": (rules.meamed(f), theirs.Meamed(f)),
        "geometric_median": (
            rules.geometric_median(smoothing=0.1, steps=3, from_origin=True),
            theirs.GeometricMedian(nu=0.1, T=3),
        ),
        "krum": (rules.krum_byzfl(f), theirs.Krum(f)),
        "multi_krum": (rules.multi_krum_byzfl(f), theirs.MultiKrum(f)),
        "monna": (rules.monna(f), theirs.MoNNA(f)),
        "centered_clipping": (rules.centered_clipping(100.0), theirs.CenteredClipping(tau=100.0)),
        "minimum_diameter": (rules.minimum_diameter(SETS), theirs.MDA(SETS)),
        "smea": (rules.smea(SETS), theirs.SMEA(SETS)),
        "caf": (rules.caf(f), theirs.CAF(f)),
        "mixing x median": (
            rules.nearest_neighbor_mixing(rules.median(), faulty=f),
            after(before.NNM(f), theirs.Median()),
        ),
        "clipping x median": (rules.clipping(rules.median(), radius=2.0), after(before.Clipping(2.0), theirs.Median())),
        "adaptive_clipping x median": (
            rules.adaptive_clipping(rules.median(), faulty=f),
            after(before.ARC(f), theirs.Median()),
        ),
        "bucketing x median": (rules.bucketing(rules.median()), after(before.Bucketing(2), theirs.Median())),
        "krum_l4": (rules.krum_mixtailor(f, 4), None),
        "bulyan": (rules.bulyan(f), None),
    }


def seconds(function, rows):
    """How long one call takes."""
    began = time.perf_counter()
    jax.block_until_ready(function(rows))
    return time.perf_counter() - began


def main(*chosen):
    """Print the table."""
    values = np.random.default_rng(0).standard_normal((WORKERS, COLUMNS), np.float32)
    rows, copy = jnp.asarray(values), np.empty_like(values)
    floor = np.median([seconds(lambda x: np.copyto(copy, x), values) for _ in range(ROUNDS)]) / 2
    print(f"n = {WORKERS}, d = {COLUMNS}, float32, {jax.devices()[0].device_kind}; one read {1e3 * floor:.1f} ms")
    print("rule                           ours ms (range)      ByzFL ms (range)   ratio (range)  compile s   reads")
    ratios = []
    for name, (rule, peer) in table().items():
        if chosen and name not in chosen:
            continue
        began = time.perf_counter()
        joined = jax.jit(lambda x, rule=rule: aggregate(rule, x, key=jax.random.key(0))).lower(rows).compile()
        compiled = time.perf_counter() - began
        seconds(joined, rows)
        ours, theirs = [], []
        for turn in range(ROUNDS):
            ours.append(seconds(joined, rows))
            if peer is not None and (turn == 0 or theirs[0] < LIMIT):
                # Some of its rules write into their argument.
                theirs.append(seconds(peer, values.copy()))
        line = f"{name:<28} {shown(ours)}"
        if theirs:
            each = np.array(theirs) / np.array(ours[: len(theirs)])
            ratios.append(np.median(theirs) / np.median(ours))
            line += f" {shown(theirs)} {ratios[-1]:7.1f} ({each.min():.1f}-{each.max():.1f})"
        else:
            line += f" {'none':>20} {'':>15}"
        print(f"{line} {compiled:8.1f} {np.median(ours) / floor:8.1f}", flush=True)
    print(f"median ratio {np.median(ratios):.1f}, least {min(ratios):.1f}, of {len(ratios)} rules")


def shown(times):
    """Milliseconds: the median and the range."""
    return f"{1e3 * np.median(times):8.0f} ({1e3 * min(times):.0f}-{1e3 * max(times):.0f})"


if __name__ == "__main__":
    main(*sys.argv[1:])
