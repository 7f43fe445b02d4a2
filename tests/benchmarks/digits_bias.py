"""Which optimizer's network resists which attack: configs/digits_steepest_descent.py for every norm and five seeds.

    python tests/benchmarks/digits_bias.py [SEEDS] [NORM ...]

Accuracy in percent on the test split, mean and 95 % interval of Student's t over the seeds, which draw parameters and
data order.
"""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
from scipy import stats

from jaxrobust import train

CONFIG = Path(__file__).parents[2] / "configs" / "digits_steepest_descent.py"


def main(seeds, norms):
    """Train, attack and print the table."""
    specification = importlib.util.spec_from_file_location("config", CONFIG)
    config = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(config)
    for norm in norms or config.NORMS:
        began = time.perf_counter()
        found = [train.fit(config.experiment(norm=norm, seed=seed)).evaluated.metrics for seed in range(seeds)]
        cells = []
        for name in found[0]:
            values = np.array([100 * metrics[name] for metrics in found])
            half = stats.t.ppf(0.975, seeds - 1) * values.std(ddof=1) / seeds**0.5
            cells.append(f"{name} {values.mean():.1f} ± {half:.1f}")
        print(f"{norm}: {', '.join(cells)} ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:])
