"""Notebooks are valid, and their install cell installs the wheel that this checkout builds."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.md"))


def install_cells(text):
    return re.findall(r'```python tags=\["install"\]\n(.*?)```', text, re.DOTALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Jupyter's own packages warn of what they will change.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_becomes_a_valid_ipynb(path):
    jupytext = pytest.importorskip("jupytext")
    nbformat = pytest.importorskip("nbformat")
    notebook = jupytext.read(path)
    nbformat.validate(notebook)
    assert sum(cell.cell_type == "code" for cell in notebook.cells) > 3
    assert all(not cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_the_install_cell_installs_the_built_wheel(tmp_path):
    built = tmp_path / "dist"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = built.glob("jaxrobust-*.whl")
    for path in NOTEBOOKS:
        (cell,) = install_cells(path.read_text())
        words = shlex.split(cell)
        assert words[:2] == ["%pip", "install"]
        target = tmp_path / path.stem
        offline = ["--no-index", "--find-links", str(built), "--no-deps", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", *words[1:], *offline], check=True, capture_output=True)
        code = "import jaxrobust.report.page as p, jaxrobust; print(jaxrobust.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(target)},
            check=True,
            capture_output=True,
            text=True,
        )
        assert Path(found.stdout.strip()).is_relative_to(target)
        assert (target / "jaxrobust" / "py.typed").exists()
        assert list((target / "jaxrobust" / "report" / "templates").iterdir())
    assert wheel.stat().st_size < 1_000_000
