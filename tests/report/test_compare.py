import json

import pytest

from jaxrobust.report import Rows, compare


def cells(table):
    """The table as a list of dictionaries, column -> text."""
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def run(directory, arguments, rows):
    directory.mkdir(parents=True)
    manifest = {"configuration": {"name": "digits.py", "arguments": arguments}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with Rows(directory / "metrics.jsonl") as writer:
        for row in rows:
            writer.write(row)
    return directory


@pytest.fixture
def runs(tmp_path):
    first = run(
        tmp_path / "first",
        {"steps": 2000, "radius": 0.1, "attack": "pgd"},
        [
            {"step": 1000, "split": "test", "clean": 0.5, "pgd-50": 0.1},
            {"step": 2000, "loss": 0.125},
            {"step": 2000, "split": "test", "clean": 0.981, "pgd-50": 0.612},
        ],
    )
    second = run(
        tmp_path / "second",
        {"steps": 2000, "radius": 0.3, "attack": "pgd", "beta": 6},
        [{"step": 500, "loss": 1.5}, {"step": 500, "split": "test", "clean": 0.9, "square": 0.3}],
    )
    return first, second


def test_table_shows_what_differs_and_what_came_out(runs):
    first, second = cells(compare(runs))
    assert first == {
        "run": "first",
        "configuration": "digits.py",
        "radius": "0.1",
        "beta": "-",
        "step": "2,000",
        "loss": "0.125",
        "clean": "98.1%",
        "pgd-50": "61.2%",
        "square": "-",
    }
    assert (second["radius"], second["beta"], second["step"]) == ("0.3", "6", "500")
    assert (second["clean"], second["pgd-50"], second["square"]) == ("90.0%", "-", "30.0%")


def test_arguments_that_agree_are_left_out(runs):
    # The negative control of the columns above: a run beside itself differs in nothing.
    (line, _) = cells(compare([runs[0], runs[0]]))
    assert list(line) == ["run", "configuration", "step", "loss", "clean", "pgd-50"]


def test_columns_line_up(runs):
    assert len({len(line) for line in compare(runs).splitlines()}) == 1


def test_runs_of_one_name_are_told_apart(tmp_path):
    directories = [run(tmp_path / parent / "run", {}, [{"step": 1}]) for parent in ("a", "b")]
    assert [line["run"] for line in cells(compare(directories))] == list(map(str, directories))


def test_training_accuracy_stands_in_for_an_evaluation(tmp_path):
    directory = run(tmp_path / "run", {}, [{"step": 5, "clean_accuracy": 0.5, "adversarial_accuracy": 0.25, "kl": 0.1}])
    (line,) = cells(compare([directory]))
    assert (line["clean"], line["adversarial_accuracy"], "kl" in line) == ("50.0%", "25.0%", False)


def test_run_without_rows_has_dashes(tmp_path):
    (line,) = cells(compare([run(tmp_path / "run", {}, [])]))
    assert (line["step"], line["loss"], line["clean"]) == ("-", "-", "-")


@pytest.mark.parametrize("kind", ["absent", "empty", "torn manifest", "manifest is a list", "bad row"])
def test_broken_run_is_named_in_one_line(tmp_path, runs, kind):
    broken = tmp_path / "broken"
    if kind != "absent":
        broken.mkdir()
    if kind not in ("absent", "empty"):
        (broken / "metrics.jsonl").write_text("nonsense\n" if kind == "bad row" else "")
        (broken / "manifest.json").write_text({"torn manifest": '{"seed', "manifest is a list": "[]"}.get(kind, "{}"))
    with pytest.raises(ValueError, match="broken") as error:
        compare([*runs, broken])
    assert "\n" not in str(error.value)


def test_no_run_is_refused():
    with pytest.raises(ValueError, match="at least one run directory, got none"):
        compare([])
