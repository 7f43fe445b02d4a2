import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxrobust.report import Rows, charts, read_rows, write_report
from jaxrobust.report.run import is_number


class Page(HTMLParser):
    """Points by series, tags with their attributes, and text."""

    def __init__(self, path):
        super().__init__()
        self.points, self.tags, self.text, self.series = [], [], "", None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.series = attributes.get("data-series", self.series)
        if "data-value" in attributes:
            self.points.append((self.series, attributes.get("data-step"), attributes["data-value"]))

    def handle_data(self, data):
        self.text += data


def expected_points(rows):
    """What of the rows is drawn: every number that has a name of its own."""
    return sorted(
        (name, json.dumps(row["step"]), json.dumps(value))
        for row in rows
        for name, value in row.items()
        if name != "step" and is_number(value)
    )


def drawn_points(page):
    return sorted(point for point in page.points if point[1] is not None)


@pytest.mark.parametrize("count", [0, 1, 2, 700])
def test_points_are_the_rows(make_run, count):
    directory = make_run(count=count)
    path = write_report(directory)
    assert path == directory / "report.html"
    rows = read_rows(directory / "metrics.jsonl")
    assert drawn_points(Page(path)) == expected_points(rows)
    if count:
        # The negative control: one digit less is seen.
        value = json.dumps(rows[0]["loss"])
        path.write_text(path.read_text().replace(f'data-value="{value}"', f'data-value="{value[:-1]}"'))
        assert drawn_points(Page(path)) != expected_points(rows)


def test_curve_is_the_file(make_run):
    page = Page(write_report(make_run()))
    found = [(a["data-radius"], a["data-value"]) for _, a in page.tags if "data-radius" in a]
    assert found == [("0.0", "0.9"), ("0.1", "0.4"), ("0.25", "0.05")]


def test_every_chart_has_its_place(make_run):
    page = Page(write_report(make_run()))
    names = [a["aria-label"] for tag, a in page.tags if a.get("class") == "plot"]
    assert names == [
        "Training loss by step",
        "Training accuracy by step",
        "Test accuracy by step",
        "Robust accuracy by radius",
        "gradient norm by step",
    ]


def test_headlines_and_sentence_come_from_the_last_evaluation(make_run):
    directory = make_run(count=1)
    with Rows(directory / "metrics.jsonl") as rows:
        rows.write({"step": 5, "split": "test", "clean": 0.1, "pgd-50": 0.05})
        rows.write({"step": 10, "split": "test", "clean": 0.5, "pgd-50": 0.05})
        rows.write({"step": 10, "split": "test", "final": True, "clean": 0.984, "pgd-50": 0.626, "fgsm": 0.7})
    text = write_report(directory).read_text()
    assert (
        "After 10 steps the model classifies 98.4% of the test examples correctly and withstands pgd-50 on 62.6%"
        in text
    )
    assert re.findall('class="value">([^<]*)<', text) == ["98.4%", "62.6%"]


def test_every_key_of_the_manifest_is_there(make_run):
    page = Page(write_report(make_run(nothing={}, several=[1, 2], none=None)))
    for key in ("status", "devices.kind", "configuration.source", "configuration.arguments.radius", "nothing", "none"):
        assert key in page.text
    assert "return 1 < 2" in page.text
    assert "absent.key" not in page.text


def test_page_needs_nothing_but_itself(make_run):
    page = Page(write_report(make_run()))
    addresses = [a[name] for _, a in page.tags for name in ("src", "href", "action") if name in a]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert not any(tag in ("script", "iframe", "object") for tag, _ in page.tags)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "url(" not in write_report(make_run("other")).read_text()


@pytest.mark.parametrize("where", ["name", "command", "metric", "attack", "split", "manifest key"])
def test_markup_in_data_is_text(make_run, where):
    evil = "</title></style><script>alert(1)</script>\"'><img src=x>"
    given = {"name": {"configuration": {"name": evil}}, "command": {"command": evil}, "manifest key": {evil: 1}}
    directory = make_run(count=1, **given.get(where, {}))
    with Rows(directory / "metrics.jsonl") as rows:
        rows.write({"step": 5, evil if where == "metric" else "kl": 0.5})
        rows.write({"step": 5, "split": evil if where == "split" else "test", "clean": 0.5})
    if where == "attack":
        (directory / "curve.json").write_text(json.dumps({"radii": [0], "accuracy": [1], "attack": evil}))
    path = write_report(directory)
    page = Page(path)
    assert not any(tag == "script" for tag, _ in page.tags)
    assert not any(a.get("src") == "x" for _, a in page.tags)
    assert "<script>alert(1)</script>" in page.text
    # The negative control: unescaped, the same parser finds the script.
    path.write_text(path.read_text().replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"'))
    assert any(tag == "script" for tag, _ in Page(path).tags)


def test_values_that_are_not_finite_are_gaps(make_run):
    directory = make_run(count=3)
    with Rows(directory / "metrics.jsonl") as rows:
        rows.write({"step": 20, "loss": float("nan")})
        rows.write({"step": 25, "loss": 1.0})
    page = Page(write_report(directory))
    assert ("loss", "20", "null") not in page.points
    assert ("loss", "25", "1.0") in page.points
    assert "loss: 1 not finite, step 20." in page.text


def test_many_rows_are_thinned_and_the_page_says_so(make_run):
    directory = make_run(count=3000)
    rows = read_rows(directory / "metrics.jsonl")
    page = Page(write_report(directory))
    assert len([point for point in page.points if point[0] == "loss"]) <= charts.LIMIT
    assert set(drawn_points(page)) < set(expected_points(rows))
    assert "loss: of 3,000 rows, the lowest and highest of each stretch are drawn." in page.text
    losses = [row["loss"] for row in rows if "loss" in row]
    assert {json.dumps(min(losses)), json.dumps(max(losses))} <= {point[2] for point in page.points}
    assert "Listed are all evaluations and one in 2 of the other rows." in page.text
    assert "Listed are" not in Page(write_report(make_run("short"))).text


@pytest.mark.parametrize("absent", ["manifest.json", "curve.json", "gallery.npz"])
def test_what_is_optional_may_be_absent(make_run, absent):
    directory = make_run()
    marks = {"manifest.json": "c0ffee", "curve.json": "by radius", "gallery.npz": "What the attack changed"}
    assert marks[absent] in write_report(directory).read_text()
    (directory / absent).unlink()
    assert marks[absent] not in write_report(directory).read_text()


def test_sections_of_the_manifest_of_another_kind_do_no_harm(make_run):
    write_report(make_run(devices="none", versions=None, configuration=3, seconds="long", parameters=None))


def broken(directory, kind):
    path = directory / kind
    if kind == "metrics.jsonl":
        path.unlink()
    elif kind == "curve.json":
        path.write_text('{"radii": [0, 1], "accuracy": [1]}')
    elif kind == "manifest.json":
        path.write_text('{"seed": ')
    else:
        path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("kind", ["metrics.jsonl", "curve.json", "manifest.json", "gallery.npz"])
def test_damaged_file_is_named_in_one_line(make_run, kind):
    directory = make_run()
    write_report(directory)
    broken(directory, kind)
    with pytest.raises(ValueError, match=re.escape(kind)) as error:
        write_report(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((5, 6, 8, 2))}, "1 or 3"),
        ({"adversarial": np.zeros((5, 6, 9, 1))}, "1 or 3"),
        ({"labels": np.zeros(4, int)}, r"classes must be \[5\]"),
        ({"images": np.full((5, 6, 8, 1), None)}, "damaged"),
    ],
)
def test_gallery_of_another_kind_is_refused(make_run, change, message):
    directory = make_run()
    with np.load(directory / "gallery.npz") as arrays:
        np.savez(directory / "gallery.npz", **{**arrays, **change})
    with pytest.raises(ValueError, match=message):
        write_report(directory)


def test_page_replaces_the_last_one_at_once(make_run):
    directory = make_run()
    write_report(directory)
    with Rows(directory / "metrics.jsonl") as rows:
        rows.write({"step": 9999, "loss": 0.0})
    assert ("loss", "9999", "0.0") in Page(write_report(directory)).points
    assert sorted(path.name for path in directory.iterdir() if path.name.startswith(".")) == []
