import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.report import Rows, read_rows, truncate_rows


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, *rows):
    with Rows(path) as writer:
        for row in rows:
            writer.write(row)


def test_numbers_come_back_exactly(path):
    row = {"step": 3, "loss": 0.1 + 0.2, "count": 2**60, "split": "test", "final": True, "tiny": 5e-324}
    write(path, row)
    assert read_rows(path) == [row]
    # Six digits would not do: the comparison above sees the difference.
    assert float(f"{row['loss']:.6g}") != row["loss"]


def test_array_scalars_are_numbers(path):
    write(path, {"step": np.int32(3), "loss": jnp.float32(0.1), "rate": np.float64(2.5)})
    assert read_rows(path) == [{"step": 3, "loss": float(np.float32(0.1)), "rate": 2.5}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), jnp.float32("nan")])
def test_what_is_not_finite_is_null_in_strict_json(path, value):
    write(path, {"step": 1, "loss": value})
    assert path.read_text() == '{"step": 1, "loss": null}\n'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"loss": 1.0}, "step must be an integer, got None"),
        ({"step": 1.5}, "step must be an integer, got 1.5"),
        ({"step": True}, "step must be an integer, got True"),
        ({"step": 1, "loss": [1.0]}, "loss must be a number"),
        ({"step": 1, "loss": np.ones(2)}, "loss must be a number"),
    ],
)
def test_bad_row_is_refused_and_leaves_no_trace(path, row, message):
    with Rows(path) as rows, pytest.raises(ValueError, match=message):
        rows.write(row)
    assert path.read_text() == ""


def test_each_row_is_on_disk_at_once(path):
    with Rows(path) as rows:
        rows.write({"step": 1})
        assert read_rows(path) == [{"step": 1}]
        rows.write({"step": 2})
        assert read_rows(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("cut", range(1, 26))
def test_kill_within_a_write_loses_that_row_alone(path, cut):
    write(path, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    # One byte short, only the newline is missing and the row is whole.
    expected = [{"step": 1, "loss": 1.0}] + ([{"step": 2, "loss": 2.0}] if cut == 1 else [])
    assert read_rows(path) == expected
    write(path, {"step": 3})
    assert read_rows(path) == [*expected, {"step": 3}]


def test_torn_line_inside_the_file_is_an_error(path):
    # The negative control of the test above: appending without the repair glues two rows together.
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    with path.open("a") as file:
        file.write('{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is no row"):
        read_rows(path)


@pytest.mark.parametrize("line", ["", "[1]", "{}", '{"step": "1"}', '{"step": 1, "loss": NaN}', "\x00\x00", "nonsense"])
def test_bad_line_is_named(path, line):
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    for action in (read_rows, Rows, lambda at: truncate_rows(at, 1)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is no row"):
            action(path)


def test_absent_file_is_named(path):
    for action in (read_rows, lambda at: truncate_rows(at, 1)):
        with pytest.raises(ValueError, match=r"no metrics at .*metrics\.jsonl"):
            action(path)


@pytest.mark.parametrize(
    ("step", "left"), [(0, []), (10, [10]), (19, [10]), (20, [10, 20, 20]), (99, [10, 20, 20, 30])]
)
def test_truncation_keeps_rows_up_to_the_step(path, step, left):
    write(path, {"step": 10}, {"step": 20}, {"step": 20, "split": "test", "clean": 0.1}, {"step": 30})
    truncate_rows(path, step)
    assert [row["step"] for row in read_rows(path)] == left
    assert path.parent.joinpath("metrics.jsonl").read_text().count("\n") == len(left)


def test_truncation_is_all_or_nothing(path, monkeypatch):
    write(path, {"step": 10}, {"step": 20})
    before = path.read_bytes()

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        truncate_rows(path, 10)
    assert path.read_bytes() == before


def test_truncation_leaves_lines_as_they_were(path):
    line = '{"loss":1e0,   "step":10}\n'
    path.write_text(line + json.dumps({"step": 20}) + "\n")
    truncate_rows(path, 10)
    assert path.read_text() == line
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.jsonl"]
