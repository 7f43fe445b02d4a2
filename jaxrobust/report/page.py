"""A run as one page: `report.html`, which needs nothing but itself and opens from disk.

Charts are inline SVG, images are embedded, and there is no script: a content security policy in the page forbids it
everything else. Every point that is drawn carries its numbers as `metrics.jsonl` has them (`data-step`, `data-value`).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrobust.report.charts import LIMIT, Chart, Pairs, aligned, chart
from jaxrobust.report.pixels import SHOWN, exhibits, magnification
from jaxrobust.report.rows import Row
from jaxrobust.report.run import CLEAN, Run, is_number, is_share, read_run, result, section
from jaxrobust.report.wording import duration, label, number, percent

LOSS_COLOR = 2
"""The color of what is neither clean (0) nor attacked (1)."""


def write_report(run_directory: str | Path) -> Path:
    """Write a run's page beside its metrics.

    Args:
      run_directory: holds `metrics.jsonl`, and where they exist `manifest.json`, `curve.json` and `gallery.npz`.

    Returns:
      The path of `report.html`.

    Raises:
      ValueError: if the directory has no metrics, or one of the files is damaged; in one line that names it.

    Example:
      >>> import tempfile
      >>> from jaxrobust.report import Rows, write_report
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     with Rows(f"{directory}/metrics.jsonl") as rows:
      ...         rows.write({"step": 20, "loss": 0.5})
      ...     write_report(directory).name
      'report.html'

    Reference: Ronacher, "Jinja", https://jinja.palletsprojects.com, 2008.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    run = read_run(run_directory)
    environment = Environment(
        loader=PackageLoader("jaxrobust.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.jinja").render(_page(run))
    path = run.directory / "report.html"
    temporary = run.directory / f".report.html.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _page(run: Run) -> dict[str, Any]:
    main, others = _charts(run)
    shown, columns, stride = _table(run.rows)
    gallery = run.gallery if run.gallery is not None and len(run.gallery.labels) else None
    return {
        "name": run.name,
        "sentence": _sentence(run),
        "tags": _tags(run.manifest),
        "command": run.manifest.get("command"),
        "headlines": _headlines(run),
        "facts": _facts(run),
        "charts": main,
        "other_charts": others,
        "exhibits": exhibits(gallery) if gallery else [],
        "examples": len(gallery.labels) if gallery else 0,
        "shown_examples": SHOWN,
        "scale": number(magnification(gallery)) if gallery else "1",
        "shape": gallery.images.shape[1:] if gallery else (1, 1, 1),
        "manifest": _flat(run.manifest),
        "rows": shown,
        "row_count": len(run.rows),
        "columns": columns,
        "stride": stride,
        "json": json.dumps,
    }


def _sentence(run: Run) -> str:
    found = result(run.rows)
    measured = [row for row in run.rows if "split" in row]
    if found is None and measured:
        last = measured[-1]
        told = [f"{label(name)} {number(value)}" for name, value in last.items() if name != "step" and is_number(value)]
        return f"After {number(last['step'])} steps: {', '.join(told)} on the {last['split']} examples."
    if found is None:
        return f"{len(run.rows):,} rows and no accuracy measured yet." if run.rows else "Nothing measured yet."
    examples = "the last training batch" if found.split == "training" else f"the {found.split} examples"
    parts = [] if found.clean is None else [f"classifies {percent(found.clean)} of {examples} correctly"]
    if found.robust:
        name = next(iter(found.robust))
        attack = "attack" if found.split == "training" else name
        parts.append(f"withstands {attack} on {percent(found.robust[name])}")
    return f"After {number(found.step)} steps the model {' and '.join(parts)}."


def _tags(manifest: Mapping[str, Any]) -> list[str]:
    """What a run is recognized by."""
    devices, versions = section(manifest, "devices"), section(manifest, "versions")
    tags = [str(manifest["status"])] if "status" in manifest else []
    if devices:
        kind = devices.get("kind", devices.get("platform", "device"))
        tags.append(f"{devices.get('count', 1)} \N{MULTIPLICATION SIGN} {kind}")
    if "seed" in manifest:
        tags.append(f"seed {manifest['seed']}")
    tags += [f"{name} {version}" for name, version in versions.items()]
    return tags


def _headlines(run: Run) -> list[tuple[str, str, str]]:
    """(what, how much, under which circumstances) of the accuracies that matter."""
    found = result(run.rows)
    if found is None:
        return []
    on = f"{found.split}, step {number(found.step)}"
    tiles = [] if found.clean is None else [("Clean accuracy", percent(found.clean), on)]
    if found.robust:
        worst, *others = found.robust
        more = ", ".join(f"{label(name)} {percent(found.robust[name])}" for name in others)
        under = f"{label(worst)}; {on}" + (f"; also {more}" if more else "")
        tiles.append(("Robust accuracy", percent(found.robust[worst]), under))
    return tiles


def _facts(run: Run) -> list[tuple[str, str]]:
    """(what, how much) of the rest."""
    training = [row for row in run.rows if "split" not in row]
    facts = [("steps", number(run.rows[-1]["step"]))] if run.rows else []
    for name in ("loss", "images_per_second"):
        value = training[-1].get(name) if training else None
        if value is not None:
            facts.append((f"last {label(name)}" if name == "loss" else label(name), number(value)))
    if is_number(run.manifest.get("parameters")):
        facts.append(("parameters", number(run.manifest["parameters"])))
    if is_number(run.manifest.get("seconds")):
        facts.append(("time", duration(run.manifest["seconds"])))
    return facts


def _charts(run: Run) -> tuple[list[Chart], list[Chart]]:
    """The charts of losses and accuracies, and those of everything else."""
    main: list[Chart | None] = []
    others: list[Chart | None] = []
    splits = dict.fromkeys(row.get("split", "training") for row in run.rows)
    for split in sorted(splits, key=lambda name: name != "training"):
        rows = [row for row in run.rows if row.get("split", "training") == split]
        columns = _columns(rows)
        if split == "training":
            shares = {name: pairs for name, pairs in columns.items() if name.endswith("accuracy")}
            main.append(chart("Training loss", {"loss": columns.get("loss", [])}, color=LOSS_COLOR))
            main.append(chart("Training accuracy", _clean_first(shares), shares=True))
        else:
            shares = {name: p for name, p in columns.items() if is_share(name, [y for _, y in p if y is not None])}
            first = 0 if any(name in CLEAN for name in shares) else 1
            main.append(chart(f"{split.capitalize()} accuracy", _clean_first(shares), shares=True, color=first))
        rest = {name: p for name, p in columns.items() if name not in shares and (split, name) != ("training", "loss")}
        where = "" if split == "training" else f", {split}"
        others += [chart(f"{label(name)}{where}", {name: rest[name]}, color=LOSS_COLOR) for name in rest]
    if run.curve is not None:
        attack = str(run.curve.get("attack") or "attacked")
        pairs = sorted(zip(run.curve["radii"], run.curve["accuracy"], strict=True))
        main.append(chart("Robust accuracy", {attack: pairs}, along="radius", shares=True, color=1))
    return aligned([one for one in main if one]), aligned([one for one in others if one])


def _columns(rows: list[Row]) -> dict[str, Pairs]:
    """Metric -> (step, value) of the rows that have it; null stays, as a gap."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if is_number(value))
    names.pop("step", None)
    return {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}


def _clean_first(columns: dict[str, Pairs]) -> dict[str, Pairs]:
    return dict(sorted(columns.items(), key=lambda column: column[0] not in CLEAN))


def _table(rows: list[Row]) -> tuple[list[Row], list[str], int]:
    """The rows that the page lists, their columns, and of how many rows one is listed: all of them up to `LIMIT`."""
    stride = max(1, -(-len(rows) // LIMIT))
    shown = [row for index, row in enumerate(rows) if index % stride == 0 or "split" in row]
    return shown, list(dict.fromkeys(["step", *(name for row in rows for name in row)])), stride


def _flat(manifest: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every key of the manifest with its dotted path, and its value as text."""
    found = []
    for name, value in manifest.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return found
