"""The same run on one, two and eight devices, and on two processes of two devices."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrobust.report import read_rows

SCRIPT = Path(__file__).with_name("curve.py")


def start(*words):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def curve(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return np.array(json.loads(out.splitlines()[-1]))


def two_processes(dtype, steps, *run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, second = (start(2, dtype, steps, process, port, *run) for process in (0, 1))
    try:
        losses = curve(first)
        _, err = second.communicate(timeout=60)
        assert second.returncode == 0, err
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "steps", "tolerance"), [("float64", 100, 1e-6), ("float32", 5, 1e-5)])
def test_loss_curves_do_not_depend_on_the_devices(dtype, steps, tolerance):
    one = curve(start(1, dtype, steps))
    assert one[-1] < one[0] or steps < 10
    for other in (curve(start(2, dtype, steps)), curve(start(8, dtype, steps)), two_processes(dtype, steps)):
        np.testing.assert_allclose(other, one, rtol=tolerance)


@pytest.mark.slow
def test_two_processes_keep_one_run_and_go_on(tmp_path):
    losses = two_processes("float32", 3, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"gallery.npz", "report.html", "metrics.jsonl"}
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 3]
    again = two_processes("float32", 5, tmp_path / "run")
    np.testing.assert_array_equal(again[:3], losses)
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 5]
