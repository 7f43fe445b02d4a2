"""The README's Python runs from top to bottom, and its figures are filled in."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.slow
def test_the_code_runs(capsys):
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        # Fewer steps: what is tested is the code, not the accuracy.
        exec(block.replace("steps=200", "steps=5"), names)
    assert names["adversarial"].shape == names["images"].shape
    assert "'pgd-20': " in capsys.readouterr().out


def test_its_files_exist_and_nothing_is_left_open():
    assert re.search(r"@[A-Z]+@", README) is None
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
