"""Runs to report on, and a browser to look with."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxrobust.report import Rows

MANIFEST = {
    "status": "finished",
    "seed": 7,
    "command": "jaxrobust train configs/digits_trades.py --steps 300",
    "versions": {"jax": "0.10.2", "jaxrobust": "0.1.0"},
    "commit": "c0ffee",
    "data": {"train": "aa", "test": "bb"},
    "devices": {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1},
    "parameters": 1234,
    "seconds": 12.3,
    "configuration": {
        "name": "digits_trades.py",
        "sha256": "cc",
        "source": "def experiment():\n    return 1 < 2\n",
        "arguments": {"steps": 300, "radius": 0.1},
    },
}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, count=, channels=, **manifest)` writes a run's directory with `count` training rows."""

    def make(name: str = "run", count: int = 60, channels: int = 1, **manifest: object) -> Path:
        rng = np.random.default_rng(3)
        directory = tmp_path / name
        directory.mkdir()
        (directory / "manifest.json").write_text(json.dumps({**MANIFEST, **manifest}))
        with Rows(directory / "metrics.jsonl") as rows:
            for step in range(5, 5 * count + 1, 5):
                row = {"loss": 2 / step + rng.random(), "clean_accuracy": rng.random(), "gradient_norm": rng.random()}
                rows.write({"step": step, **row, "adversarial_accuracy": rng.random()})
                if step % 100 == 0:
                    rows.write({"step": step, "split": "test", "clean": 0.9, "pgd-50": rng.random() / 2, "fgsm": 0.55})
        curve = {"radii": [0.0, 0.1, 0.25], "accuracy": [0.9, 0.4, 0.05], "attack": "pgd-50"}
        (directory / "curve.json").write_text(json.dumps(curve))
        images = rng.random((5, 6, 8, channels), np.float32)
        adversarial = np.clip(images + rng.uniform(-0.07, 0.07, images.shape), 0, 1).astype(np.float32)
        classes = {"labels": [1, 2, 3, 4, 5], "clean": [1, 2, 3, 4, 9], "attacked": [1, 0, 3, 0, 9]}
        np.savez(directory / "gallery.npz", images=images, adversarial=adversarial, **classes)
        return directory

    return make


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Chromium without a window; tests that look at a page skip without it."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium with its chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        "no-first-run",
        "disable-component-update",
        "disable-sync",
        "disable-quic",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=Service(driver))
    yield chromium
    chromium.quit()
