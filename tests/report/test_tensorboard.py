import struct
import sys

import pytest

from jaxrobust.report.tensorboard import Events

ROWS = [
    {"step": 10, "loss": 0.5, "gradient_norm": float("nan")},
    {"step": 10, "split": "test", "final": True, "clean": 0.75},
    {"step": 20, "loss": 0.25},
]


def scalars(directory):
    """(tag, step, value) of every scalar in the event files, and the steps at which a session starts anew."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    found, starts = [], []
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            starts += [event.step] if event.session_log.status == 1 else []
            data = data[16 + length :]
    return found, starts


def test_events_are_the_numbers_of_the_rows(tmp_path):
    pytest.importorskip("tensorboardX")
    with Events(tmp_path) as events:
        for row in ROWS:
            events.write(row)
    expected = [("train/loss", 10, 0.5), ("test/clean", 10, 0.75), ("train/loss", 20, 0.25)]
    assert scalars(tmp_path) == (expected, [])
    # The negative control: one step off is seen.
    assert scalars(tmp_path)[0] != [(tag, step + 1, value) for tag, step, value in expected]


def test_later_events_of_an_earlier_part_are_hidden(tmp_path):
    pytest.importorskip("tensorboardX")
    with Events(tmp_path, after=10) as events:
        events.write({"step": 20, "loss": 0.25})
    assert scalars(tmp_path) == ([("train/loss", 20, 0.25)], [11])


def test_row_without_a_step_is_refused(tmp_path):
    pytest.importorskip("tensorboardX")
    with Events(tmp_path) as events, pytest.raises(ValueError, match="step must be an integer, got None"):
        events.write({"loss": 1.0})


def test_absent_extra_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"^TensorBoard events need .*: pip install 'jaxrobust\[tensorboard\]'$"):
        Events(tmp_path)
