"""Rules against attacks that are made for one of them: the recipe of configs/mnist_mixtailor.py.

    python tests/benchmarks/mixtailor.py [digits | DIRECTORY of MNIST] [SEEDS]

Test accuracy in percent after the run, mean (least) over seeds, with workers that draw from the same examples and with
workers that each draw from a twelfth in order of the labels.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

from jaxrobust import train

CONFIG = Path(__file__).parents[2] / "configs" / "mnist_mixtailor.py"
RULES = ("mean", "krum", "median", "geometric_median", "bulyan", "mixtailor")
ATTACKS = ("none", "small_epsilon", "large_epsilon", "little_is_enough", "min_max")


def accuracy(**flags):
    """Of one run; 0 where it ended in numbers that are not finite."""
    configuration = train.configure(CONFIG, flags)
    try:
        return 100 * train.fit(configuration.build(), stream=open(os.devnull, "w")).evaluated.metrics["clean"]
    except train.Diverged:
        return 0.0


def main(directory="digits", seeds="3"):
    """Print a table for each way of dividing the data."""
    data_dir, began = "" if directory == "digits" else directory, time.perf_counter()
    for alike in (True, False):
        print(f"workers' data alike: {alike} | {' | '.join(ATTACKS)}", flush=True)
        for rule in RULES:
            cells = []
            for attack in ATTACKS:
                found = [
                    accuracy(data_dir=data_dir, rule=rule, attack=attack, alike=alike, seed=seed)
                    for seed in range(int(seeds))
                ]
                cells.append(f"{np.mean(found):.1f} ({min(found):.1f})")
            print(f"{rule} | {' | '.join(cells)}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
