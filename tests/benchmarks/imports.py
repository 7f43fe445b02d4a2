"""Seconds that `import jaxrobust` adds to `import jax, optax`.

python tests/benchmarks/imports.py
"""

import statistics
import subprocess
import sys

CODE = "import time, jax, optax; t = time.perf_counter(); import jaxrobust; print(time.perf_counter() - t)"


def main() -> None:
    """Print the median of eleven fresh processes."""
    seconds = [
        float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout)
        for _ in range(11)
    ]
    print(f"import jaxrobust after jax and optax: {statistics.median(seconds):.3f} s (largest {max(seconds):.3f} s)")


if __name__ == "__main__":
    main()
