"""The command line: what a user can put wrong is told in one line, with exit code 2, and loses nothing."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxrobust import cli

BALL = ("--geometry", "linf", "--radius", "0.1")
CONFIG = '''
"""A small run for tests."""
import optax
from jaxrobust import attacks, data, geometry, models, objectives, train


def experiment(
    *,
    steps: int = 20,
    batch_size: int = 64,
    seed: int = 0,
    radius: float = 0.1,
    learning_rate: float = 0.1,
    images: str | None = None,
    dataset: str | None = None,
    checkpoint_every: int = 5,
) -> train.Experiment:
    """A small run.

    Args:
      steps: updates.
      radius: of the ball.
    """
    ball = geometry.linf()
    splits = data.digits()
    if dataset is not None:
        splits = data.tfds(dataset)
    source = splits.train if images is None else data.npz(images)
    return train.Experiment(
        model=models.mlp(10, widths=(16,)),
        data=source,
        test=splits.test,
        objective=objectives.adversarial(attacks.fgsm(ball, radius)),
        optimizer=optax.sgd(learning_rate),
        evaluate=attacks.accuracy({"pgd-2": attacks.pgd(ball, radius, steps=2)}, examples=64, batch_size=64),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        log_every=1,
        checkpoint_every=checkpoint_every,
    )
'''


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "configs" / "small.py"
    path.parent.mkdir()
    path.write_text(CONFIG)
    return path


def refused(capsys, *words):
    """Run a command that must be refused; give its line."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as exit_:
        code = exit_.code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2, line
    assert line.startswith("jaxrobust: ")
    assert "Traceback" not in line
    return line


def command(*words, before=()):
    """The same command as a process of its own."""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*before, sys.executable, "-m", "jaxrobust.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_train_evaluate_compare_and_go_on(capsys, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert cli.main(["train", str(config), "--run", str(run), "--steps", "10"]) == 0
    first = capsys.readouterr().out
    assert "pgd-2: " in first
    assert {path.name for path in run.iterdir()} >= {"manifest.json", "metrics.jsonl", "report.html", "checkpoints"}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["configuration"]["arguments"]["steps"] == 10
    assert manifest["configuration"]["source"] == CONFIG
    assert set(manifest) >= {"versions", "commit", "data", "keys", "devices", "seed"}
    assert cli.main(["evaluate", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == first.splitlines()[:2]
    own = ["--geometry", "fourier_linf", "--radius", "0", "--attack-steps", "3", "--examples", "64"]
    assert cli.main(["evaluate", str(run), *own]) == 0
    untouched = capsys.readouterr().out.splitlines()[1:]
    assert untouched[1].startswith("fourier_linf pgd-3 at 0: ")
    assert untouched[0].split()[1] == untouched[1].split()[-2]
    own[3] = "3.0"
    assert cli.main(["evaluate", str(run), *own]) == 0
    attacked = capsys.readouterr().out.splitlines()[1:]
    assert float(attacked[1].split()[-2]) < float(attacked[0].split()[1]) - 5
    rows = (run / "metrics.jsonl").read_text()
    assert cli.main(["train", str(config), "--run", str(run), "--steps", "10"]) == 0
    assert capsys.readouterr().out == first
    assert (run / "metrics.jsonl").read_text() == rows
    other = tmp_path / "other"
    assert cli.main(["train", str(config), "--run", str(other), "--steps", "5"]) == 0
    assert cli.main(["compare", str(run), str(other)]) == 0
    table = capsys.readouterr().out
    assert "pgd-2" in table
    assert "run" in table
    assert "other" in table


def test_runs_are_named_after_what_differs(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "configs/small.py", "--steps", "2", "--seed", "3"]) == 0
    assert (tmp_path / "runs" / "small-steps=2-seed=3" / "manifest.json").exists()


def test_help_shows_the_flags_of_a_configuration(capsys, config):
    assert cli.main(["train", str(config), "--help"]) == 0
    text = capsys.readouterr().out
    assert "--radius FLOAT" in text
    assert "of the ball" in text
    assert "--resume-from" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "absent.py"], "no configuration file absent.py"),
        (["train"], "give the path of a configuration"),
        (["train", "CONFIG", "--raduis", "1"], "has no flag --raduis: did you mean --radius?"),
        (["train", "CONFIG", "--steps", "many"], "Error parsing --steps: invalid literal for int()"),
        (["train", "CONFIG", "--dataset", "mnits"], "mnits"),
        (["train", "CONFIG", "--images", "absent.npz"], "absent.npz"),
        (["train", "CONFIG", "--radius", "-1"], "radius must not be negative, got -1.0"),
        (["train", "CONFIG", "--batch-size", "36"], "batch_size must be a multiple of 8"),
        (["train", "CONFIG", "--process", "0"], "need --coordinator"),
        (["train", "CONFIG", "--rule", "krumm"], "rule must be one of mean, median"),
        (["train", "CONFIG", "--codec", "qsgd:x"], "codec must be NAME[:BITS[:BUCKET_SIZE]], got qsgd:x"),
        (["train", "CONFIG", "--codec", "qsgd:9"], "bits must lie in 2 to 8, got 9"),
        (["train", "CONFIG", "--codec", "bfloat16:3"], "codec must be bfloat16, for it sends 16 bits in any case"),
        (["train", "CONFIG", "--codec", "ternary:8:64"], "codec must be ternary:2[:BUCKET_SIZE], for it sends 2 bits"),
        (["train", "CONFIG", "--rule", "median", "--faulty", "1"], "faulty must be left out for median with honest"),
        (["train", "CONFIG", "--rule", "krum"], "faulty must be at least 1 for krum, got 0"),
        (["train", "CONFIG", "--hostile", "sign_flip"], "faulty must be in [1, 7] for a hostile worker, got 0"),
        (
            ["train", "CONFIG", "--rule", "median", "--workers", "9"],
            "workers must be a multiple of the 8 devices, got 9",
        ),
        (["train", "CONFIG", "--resume-from", "7"], "no checkpoint of step 7"),
        (["evaluate", "absent"], "absent is not a run"),
        (["evaluate", "absent", "--frobnicate"], "unknown argument --frobnicate"),
        (["evaluate", "absent", "--geometry", "linf"], "give --geometry and --radius together"),
        (["evaluate", "absent", "--examples", "5"], "belong to --geometry and --radius"),
        (["evaluate", "absent", "--geometry", "contrast_fourier_linf", "--radius", "1"], "absent is not a run"),
        (["evaluate", "absent", "--geometry", "linf", "--radius", "-1"], "radius must not be negative, got -1.0"),
        (["evaluate", "absent", "--geometry", "linf", "--radius", "inf"], "radius must be finite, got inf"),
        (["evaluate", "absent", *BALL, "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["evaluate", "absent", "--suite", "standard"], "--suite belong to --geometry and --radius"),
        (["evaluate", "absent", *BALL, "--state", "file"], "--state belongs to --suite"),
        (["evaluate", "absent", *BALL, "--suite", "rand", "--attack-steps", "5"], "--attack-steps belongs to PGD"),
        (["evaluate", "absent", *BALL, "--suite", "strong"], "invalid choice: 'strong'"),
        (["evaluate", "absent", *BALL, "--data", "digits"], "--data and --seed belong to MODULE:FUNCTION"),
        (["evaluate", "absent:f", *BALL], "a function needs --data, --geometry and --radius"),
        (["evaluate", "absent:f", *BALL, "--data", "digits"], "no module absent"),
        (["evaluate", "math:f", *BALL, "--data", "digits"], "math has no function f"),
        (["evaluate", "math:pi", *BALL, "--data", "digits"], "math:pi is a float, and no function from images"),
        (["evaluate", "./mine:f", *BALL, "--data", "digits"], "./mine is no module: name it as Python imports it"),
        (["evaluate", "mine.py:f", *BALL, "--data", "digits"], "mine.py is no module: name it as Python imports it"),
        (["evaluate", "math:sin", *BALL, "--data", "mnits"], "data must be digits"),
        (["evaluate", "math:sin", *BALL, "--data", "digits", "--step", "5"], "--config and --step belong to a run"),
        (["compare", "absent"], "absent"),
        (["data", "prepare", "mnits"], "mnits"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unknown_things_and_numbers_out_of_range(capsys, config, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *[config if word == "CONFIG" else word for word in words])
    assert said in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image, label: (image * 255, label), "images must lie in [0, 1], got a maximum of 255"),
        (lambda image, label: (image - 0.5, label), "images must lie in [0, 1], got a minimum of -0.5"),
        (lambda image, label: (image, label - 1), "label"),
        (lambda image, label: (image, label[:-1]), "99"),
    ],
    ids=["range", "negative", "label", "length"],
)
def test_bad_images_and_labels(capsys, config, tmp_path, change, said):
    image = np.linspace(0, 1, 100 * 64, dtype=np.float32).reshape(100, 8, 8, 1)
    label = np.arange(100) % 10
    image, label = change(image, label)
    np.savez(tmp_path / "bad.npz", image=image, label=label)
    line = refused(capsys, "train", config, "--images", tmp_path / "bad.npz", "--run", tmp_path / "run")
    assert said in line


def test_a_run_of_another_configuration_is_left_alone(capsys, config, tmp_path):
    run = tmp_path / "run"
    assert cli.main(["train", str(config), "--run", str(run), "--steps", "2"]) == 0
    before = (run / "manifest.json").read_text()
    capsys.readouterr()
    assert "steps was 2, now 3" in refused(capsys, "train", config, "--run", run, "--steps", "3")
    config.write_text(CONFIG + "\n# changed\n")
    assert "another configuration" in refused(capsys, "train", config, "--run", run, "--steps", "2")
    assert "is not the configuration that trained" in refused(capsys, "evaluate", run, "--config", config)
    assert (run / "manifest.json").read_text() == before
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / "thesis.txt").write_text("precious")
    assert "is not empty and holds no run" in refused(capsys, "train", config, "--run", stray)
    assert (stray / "thesis.txt").read_text() == "precious"


def test_nothing_that_came_with_a_run_is_executed(capsys, config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert cli.main(["train", str(config), "--run", str(run), "--steps", "2"]) == 0
    capsys.readouterr()
    marker = tmp_path / "executed"
    planted = run / "configs" / "small.py"
    planted.parent.mkdir()
    planted.write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n" + CONFIG)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["configuration"]["name"] = str(planted)
    import hashlib

    manifest["configuration"]["sha256"] = hashlib.sha256(planted.read_bytes()).hexdigest()
    (run / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(run)
    assert "came with the run" in refused(capsys, "evaluate", run)
    assert "came with the run" in refused(capsys, "evaluate", run, "--config", planted)
    assert not marker.exists()
    # The control: the same file is executed once the user has it elsewhere.
    own = tmp_path / "own.py"
    own.write_text(planted.read_text())
    assert cli.main(["evaluate", str(run), "--config", str(own)]) == 0
    assert marker.exists()


# Orbax's reader leaves a coroutine behind where it fails in the middle of a file.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_truncated_checkpoint_is_named_and_the_last_good_one_loads(capsys, config, tmp_path):
    run = tmp_path / "run"
    assert cli.main(["train", str(config), "--run", str(run), "--steps", "10"]) == 0
    last = run / "checkpoints" / "10"
    biggest = max((path for path in last.glob("state/**/d/*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(biggest, biggest.stat().st_size // 2)
    capsys.readouterr()
    line = refused(capsys, "train", config, "--run", run, "--steps", "10")
    assert "checkpoint 10" in line
    assert "--resume-from 5" in line
    assert "checkpoint 10" in refused(capsys, "evaluate", run, "--config", config)
    assert cli.main(["evaluate", str(run), "--config", str(config), "--step", "5"]) == 0
    assert cli.main(["train", str(config), "--run", str(run), "--steps", "10", "--resume-from", "5"]) == 0
    assert cli.main(["evaluate", str(run), "--config", str(config)]) == 0


def test_any_codec_and_rule_and_a_hostile_worker_who_is_named(capsys, config, tmp_path):
    run, words = tmp_path / "run", ["--codec", "qsgd_inf:8:64", "--rule", "krum", "--faulty", "2"]
    drill = ["train", str(config), "--run", str(run), "--steps", "4", *words, "--hostile", "gaussian"]
    assert cli.main(drill) == 0
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert rows[0]["suspect"] in (0, 1)
    assert "stood out in step 1" in capsys.readouterr().err
    kept = json.loads((run / "manifest.json").read_text())
    assert kept["configuration"]["reduction"] == {
        "codec": "qsgd_inf:8:64",
        "rule": "krum",
        "faulty": 2,
        "hostile": "gaussian",
    }
    assert "--rule krum" in kept["command"]
    assert "rule was 'krum', now 'median'" in refused(capsys, *drill[:-8], "--rule", "median")
    # The control: honest workers, and nobody is named.
    assert cli.main(["train", str(config), "--run", str(tmp_path / "honest"), "--steps", "4", *words]) == 0
    assert "stood out" not in capsys.readouterr().err
    assert cli.main(["evaluate", str(run), "--config", str(config)]) == 0


def test_a_configurations_own_flag_of_the_same_name_is_meant(tmp_path):
    config = Path(__file__).parents[1] / "configs" / "mnist_mixtailor.py"
    words = ["--rule", "krum", "--attack", "small_epsilon", "--workers", "16", "--steps", "2"]
    assert cli.main(["train", str(config), "--run", str(tmp_path / "run"), *words]) == 0
    kept = json.loads((tmp_path / "run" / "manifest.json").read_text())["configuration"]
    assert kept["reduction"] == {}
    assert (kept["arguments"]["rule"], kept["arguments"]["workers"]) == ("krum", 16)


def test_a_flag_that_would_replace_a_configurations_own_reduction_is_refused(capsys, tmp_path):
    config = Path(__file__).parents[1] / "configs" / "mnist_mixtailor.py"
    words = ["train", str(config), "--run", str(tmp_path / "run"), "--rule", "krum", "--attack", "small_epsilon"]
    said = refused(capsys, *words, "--codec", "alq:3")
    assert "reduces gradients by its own" in said
    assert "leave out --codec" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_pod_of_hosts_that_lie_trains_and_is_evaluated_on_fewer_devices(capsys, tmp_path):
    """Eight hosts of one device: blank images with a bright square where the class says."""
    random = np.random.default_rng(0)
    for split, count in (("train", 256), ("test", 64)):
        labels = random.integers(0, 10, count)
        images = random.integers(0, 60, (count, 32, 32, 3), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[3 * label : 3 * label + 3] += 150
        np.savez(tmp_path / f"{split}.npz", image=images, label=labels)
    config, run = Path(__file__).parents[1] / "configs" / "pod_quantized_mixtailor.py", tmp_path / "run"
    words = ["--depth", "10", "--width", "1", "--batch-size", "64", "--steps", "4", "--faulty", "1"]
    drill = [*words, "--data-dir", str(tmp_path), "--attack", "bit_flip"]
    assert cli.main(["train", str(config), "--run", str(run), *drill, "--devices-per-worker", "1"]) == 0
    assert "worker 0 stood out" in capsys.readouterr().err
    kept = json.loads((run / "manifest.json").read_text())
    kept["devices_per_worker"] = kept["configuration"]["arguments"]["devices_per_worker"] = 16
    (run / "manifest.json").write_text(json.dumps(kept))
    assert cli.main(["evaluate", str(run), "--config", str(config)]) == 0
    assert "reduces gradients by its own --faulty: leave out --codec" in refused(
        capsys,
        "train",
        str(config),
        "--run",
        str(tmp_path / "other"),
        *drill,
        "--devices-per-worker",
        "2",
        "--codec",
        "alq",
    )


def test_a_loss_that_is_not_finite_stops_the_run(capsys, config, tmp_path):
    run = tmp_path / "run"
    words = ["train", config, "--run", run, "--learning-rate", "1e38", "--checkpoint-every", "1"]
    line = refused(capsys, *words)
    assert "is not finite: lower the learning rate" in line
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_two_runs_in_one_directory(capsys, config, tmp_path):
    run = tmp_path / "run"
    first = command("train", config, "--run", run, "--steps", "100000")
    try:
        for _ in range(600):
            if (run / "metrics.jsonl").exists():
                break
            time.sleep(0.1)
        line = refused(capsys, "train", config, "--run", run, "--steps", "100000")
        assert "another run goes on in" in line
    finally:
        first.send_signal(signal.SIGTERM)
        out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert "the same command goes on" in err + out


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [1, 3, 4, 6], ids=["manifest", "both", "checkpoint", "log"])
def test_a_full_disk_while_saving(config, tmp_path, kilobytes):
    full = tmp_path / "full"
    words = ["train", config, "--run", full, "--steps", "12"]

    # A write beyond the limit fails as on a full disk; the signal that would kill the process is ignored.
    limit = ["bash", "-c", f"trap '' XFSZ; ulimit -f {kilobytes}; exec \"$@\"", "--"]
    process = command(*words, before=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert err.count("jaxrobust: ") == 1
    assert "could not be written" in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert "ValueError" not in err
    assert cli.main([str(word) for word in words]) == 0


def test_a_process_of_its_own_shows_one_line(config, tmp_path):
    process = command("train", config, "--run", tmp_path / "run", "--radius", "-1")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (out, err) == ("", "jaxrobust: radius must not be negative, got -1.0\n")
    shown = command("train", config, "--run", tmp_path / "run", "--radius", "-1", "--traceback")
    _, err = shown.communicate(timeout=60)
    assert "Traceback" in err
    assert Path(config).name in err


FAILING = {
    "import torchzzz": "own imports torchzzz, which is not installed",
    "def": "own cannot be imported: SyntaxError",
    "raise RuntimeError('no weights')": "own cannot be imported: RuntimeError: no weights",
    "def logits(images):\n    raise RuntimeError('no weights')": "own:logits failed on images of shape (2, 8, 8, 1): R",
    "def logits(images, more): ...": "own:logits failed on images of shape (2, 8, 8, 1): TypeError",
    "def logits(images):\n    return images.reshape(2, -1)[:, :4]": "labels must lie in [0, 4), the classes of the log",
    "def logits(images):\n    return images.sum((1, 2, 3))": "own:logits: logits_fn must return logits [2, class] of 2",
    "def logits(images):\n    raise ValueError('no weights')": "own:logits: no weights",
}


@pytest.mark.parametrize("source", FAILING)
def test_a_function_that_fails_is_one_line(capsys, tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    (tmp_path / "own.py").write_text(source)
    importlib.invalidate_caches()
    assert FAILING[source] in refused(capsys, "evaluate", "own:logits", *BALL, "--data", "digits")


@pytest.mark.slow
def test_a_model_that_draws_under_the_suite_for_it(capsys, tmp_path, monkeypatch):
    """A dotted name; noise that no gradient is lost to."""
    (tmp_path / "noisy.py").write_text(
        "import jax, jax.numpy as jnp\nfrom jaxrobust import attacks\n\n\ndef draw(keys, images):\n"
        "    noise = jax.vmap(lambda key: jax.random.normal(key))(keys)[:, None]\n"
        "    total = images.sum((1, 2, 3))[:, None] + 1e-3 * noise\n"
        "    return jnp.concatenate([total - 8, 8 - total, 0 * total - 9], 1)\n\n\n"
        "class models:\n    noisy = attacks.Randomized(draw)\n"
    )
    brightness = np.linspace(0.3, 0.7, 4, dtype=np.float32)
    images = np.broadcast_to(brightness[:, None, None, None], (4, 4, 4, 1))
    np.savez(tmp_path / "noisy.npz", image=images, label=(brightness < 0.5).astype(int))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "noisy:models.noisy", "--data", "noisy.npz", "--suite", "rand", *BALL]) == 0
    assert "robust: 50.00 %" in capsys.readouterr().out


@pytest.mark.slow
def test_a_function_of_ones_own_under_a_suite(capsys, tmp_path, monkeypatch):
    """From a module in the working directory; a second run reads what the first one settled."""
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp\n\n\ndef logits(images):\n    total = images.sum((1, 2, 3))[:, None]\n"
        "    return jnp.concatenate([total - 8, 8 - total, 0 * total, -9 + 0 * total], 1)\n"
    )
    brightness = np.linspace(0.3, 0.7, 12, dtype=np.float32)
    images = np.broadcast_to(brightness[:, None, None, None], (12, 4, 4, 1))
    np.savez(tmp_path / "mine.npz", image=images, label=(brightness < 0.5).astype(int))
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "mine:logits", "--data", "mine.npz", "--suite", "standard", *BALL, "--state", "state.npz"]
    assert cli.main(words) == 0
    first = capsys.readouterr()
    # Robust where the brightness is further than the radius from one half: six of twelve.
    assert "clean: 100.00 %" in first.out
    assert "robust: 50.00 %" in first.out
    assert "square" in first.err
    assert cli.main(words) == 0
    again = capsys.readouterr()
    # Times and all: they were kept.
    assert again.out == first.out
    assert "12 examples; 95 % interval of robust: 25.38 to 74.62 %" in first.out
    assert "square" not in again.err
    assert cli.main([*words, "--seed", "1"]) == 2
    assert "belongs to another evaluation" in capsys.readouterr().err
