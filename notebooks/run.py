"""Run every notebook from top to bottom; the first error ends the run.

    python notebooks/run.py [NAME.md ...]

Notebooks are kept as Markdown (jupytext) and become `.ipynb` only here.
"""

import sys
import time
from pathlib import Path

import jupytext
from nbclient import NotebookClient


def main(names: list[str]) -> None:
    """Run the named notebooks, or all."""
    folder = Path(__file__).parent
    for path in [Path(name) for name in names] or sorted(folder.glob("*.md")):
        began = time.perf_counter()
        notebook = jupytext.read(path)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
        print(f"{path.name}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
