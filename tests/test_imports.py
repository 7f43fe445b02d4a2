"""`import jaxrobust` needs JAX and optax alone."""

import subprocess
import sys

import pytest

HEAVY = (
    "flax",
    "tensorflow_datasets",
    "orbax",
    "grain",
    "matplotlib",
    "sklearn",
    "tyro",
    "rich",
    "jinja2",
    "scipy.stats",
)


def loaded(statement):
    """Which of the heavy modules a statement brings in, beyond what JAX and optax import by themselves."""
    code = (
        f"import sys, jax, optax; before = set(sys.modules); {statement}; "
        f"print([m for m in {HEAVY!r} if m in sys.modules and m not in before])"
    )
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return eval(out.stdout)


def test_the_methods_need_jax_and_optax_alone():
    assert loaded("import jaxrobust, jaxrobust.attacks, jaxrobust.aggregation") == []


def test_the_check_sees_a_heavy_import():
    assert "flax" in loaded("import jaxrobust.models")


def test_the_application_is_imported_where_it_is_used():
    assert "flax" in loaded("import jaxrobust; jaxrobust.models.mlp")
    with pytest.raises(AssertionError, match="has no attribute 'nonsense'"):
        loaded("import jaxrobust; jaxrobust.nonsense")


def test_every_module_imports_without_a_warning():
    code = (
        "import pkgutil, importlib, jaxrobust\n"
        "for m in pkgutil.walk_packages(jaxrobust.__path__, 'jaxrobust.'):\n"
        "    importlib.import_module(m.name)\n"
    )
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
