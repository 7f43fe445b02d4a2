import subprocess
import sys

HEAVY = ("tensorflow_datasets", "sklearn", "grain", "flax")


def loaded(statement):
    """Which of the heavy modules a statement brings in, in a process that turns warnings into errors."""
    code = f"import sys; {statement}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return out.stdout.split()


def test_heavy_packages_wait_until_they_are_needed():
    build = "data.npz, data.arrays(np.zeros((2, 4), np.float32), np.array([0, 1]))"
    assert loaded(f"import numpy as np; from jaxrobust import data; {build}") == []


def test_the_check_sees_them_and_they_import_without_a_warning():
    assert loaded("from jaxrobust import data; data.stream([([0.5], 0)]).batches; import grain, sklearn.datasets") == [
        "sklearn",
        "grain",
    ]
    assert loaded("import jaxrobust.data.digits_builder") == ["tensorflow_datasets"]
