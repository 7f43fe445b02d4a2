"""The same codes, levels and results wherever workers live: one device, several, two processes."""

import hashlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("everywhere.py")


def start(*words):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def read(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-2000:]
    return out.splitlines()[-1]


def two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [start("processes", number, port) for number in (0, 1)]
    try:
        # The second says a digest alone: a pipe that nobody reads yet holds little.
        found, digest = (read(process) for process in both)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert digest == hashlib.sha256(found.encode()).hexdigest()
    return found


@pytest.fixture(scope="module")
def one_device():
    return json.loads(read(start("vmap")))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pmap", "shard_map", "nested", "processes"])
def test_codes_and_results_do_not_depend_on_where_the_workers_are(way, one_device):
    found = json.loads(two_processes() if way == "processes" else read(start(way)))
    assert set(found) == set(one_device)
    for pair, row in found.items():
        assert row["codes"] == one_device[pair]["codes"], pair
        for levels, others in zip(row["levels"], one_device[pair]["levels"], strict=True):
            np.testing.assert_array_equal(levels, others, err_msg=pair)
        largest = np.max(np.abs(row["result"]))
        np.testing.assert_allclose(row["result"], one_device[pair]["result"], rtol=0, atol=1e-6 * largest, err_msg=pair)
    # The control: the digests tell codecs apart, and rules give other results.
    assert len({row["codes"] for row in one_device.values()}) > 9
    assert len({json.dumps(row["result"]) for row in one_device.values()}) == len(one_device) == 18


def test_tables_are_compared(tmp_path):
    row = {"codes": "ab", "levels": [[0.5, 1.0]], "result": [2.0, -4.0]}
    tables = {
        "same": {"a x b": row, "c x d": row},
        "other": {"a x b": row | {"codes": "ba", "levels": [[0.5, 1.5]]}, "c x d": row | {"result": [2.0, -4.4]}},
    }
    for name, table in tables.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    same, other = (str(tmp_path / f"{name}.json") for name in tables)
    process = start("compare", same, same, other)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    first, second = out.splitlines()
    assert "codes of 2 of 2 pairs equal" in first
    assert "levels are within 0.0e+00, results within 0.0e+00" in first
    assert "codes of 1 of 2 pairs equal" in second
    assert "levels are within 5.0e-01, results within 1.0e-01" in second
