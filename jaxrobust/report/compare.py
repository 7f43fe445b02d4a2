"""Runs beside each other: what differs between them, and what came out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrobust.report.run import Run, read_run, result, section
from jaxrobust.report.wording import number, percent


def compare(run_directories: Sequence[str | Path]) -> str:
    """Compare runs in a Markdown table, one run a line.

    Columns: the directory, the configuration, every argument that is not the same in all runs, the last step, the loss
    of the last training row, clean accuracy and the accuracy under each attack of the last evaluation. A `-` stands
    where a run has none.

    Args:
      run_directories: at least one directory of a run.

    Returns:
      The table, its columns padded to line up.

    Raises:
      ValueError: if there is no directory, or one is not a run or damaged; in one line that names it.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxrobust.report import Rows, compare
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     run = pathlib.Path(directory, "first")
      ...     run.mkdir()
      ...     with Rows(run / "metrics.jsonl") as rows:
      ...         rows.write({"step": 20, "split": "test", "clean": 0.9, "pgd-50": 0.5})
      ...     print(compare([run]))
      | run   | configuration | step | loss | clean | pgd-50 |
      | ----- | ------------- | ---- | ---- | ----- | ------ |
      | first | first         | 20   | -    | 90.0% | 50.0%  |

    Reference: Gruber, "Markdown", https://daringfireball.net/projects/markdown, 2004.
    """
    if not run_directories:
        raise ValueError("compare needs at least one run directory, got none")
    runs = [read_run(directory) for directory in run_directories]
    names = [run.directory.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(directory) for directory in run_directories]
    lines = [_columns(run) for run in runs]
    arguments = _differing([section(section(run.manifest, "configuration"), "arguments") for run in runs])
    attacks = list(dict.fromkeys(name for line in lines for name in line["robust"]))
    head = ["run", "configuration", *arguments[0], "step", "loss", "clean", *attacks]
    table: list[list[str]] = [head, ["-" for _ in head]]
    for name, run, line, differing in zip(names, runs, lines, arguments, strict=True):
        robust = [line["robust"].get(attack, "-") for attack in attacks]
        known = [name, run.name, *differing.values(), line["step"], line["loss"]]
        table.append([_cell(text) for text in (*known, line["clean"], *robust)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    dashes: list[str] = ["-" * width for width in widths]
    table[1] = dashes
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in table
    )


def _columns(run: Run) -> dict[str, Any]:
    found = result(run.rows)
    losses = [row.get("loss") for row in run.rows if "split" not in row]
    return {
        "step": number(run.rows[-1]["step"]) if run.rows else "-",
        "loss": number(losses[-1]) if losses and losses[-1] is not None else "-",
        "clean": percent(found.clean) if found and found.clean is not None else "-",
        "robust": {name: percent(value) for name, value in found.robust.items()} if found else {},
    }


def _differing(arguments: Sequence[Any]) -> list[dict[str, str]]:
    names = dict.fromkeys(name for run in arguments for name in run)
    said = [{name: json.dumps(run[name]) if name in run else "-" for name in names} for run in arguments]
    differ = [name for name in names if len({run[name] for run in said}) > 1]
    return [{name: run[name].strip('"') for name in differ} for run in said]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
