"""A run's manifest: what it was, so that it can be told apart, repeated and trusted.

`manifest.json` holds data only: versions, commit, the configuration's text, hash and arguments, the examples' hashes,
the seed and the devices.
"""

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxrobust.train.configuration import Configuration
from jaxrobust.train.experiment import Experiment

NAME = "manifest.json"
PACKAGES = ("jaxrobust", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe(experiment: Experiment, configuration: Configuration | None) -> dict[str, Any]:
    """The manifest of a run that begins."""
    device = jax.devices()[0]
    test = {"test": experiment.test.fingerprint} if experiment.test else {}
    about = {
        "status": "running",
        "seed": experiment.seed,
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "accumulation": experiment.accumulation,
        "workers_per_device": experiment.workers_per_device,
        "devices_per_worker": experiment.devices_per_worker,
        "data": {"train": experiment.data.fingerprint, **test},
        "keys": {"seed": experiment.seed, "implementation": str(jax.random.key_impl(jax.random.key(0)))},
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "commit": commit(),
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }
    if configuration is not None:
        about["configuration"] = {
            "name": configuration.name,
            "sha256": configuration.sha256,
            "source": configuration.source,
            "arguments": dict(configuration.arguments),
            "reduction": dict(configuration.reduction),
        }
        given = {**configuration.arguments, **configuration.reduction}
        flags = (f" --{name.replace('_', '-')} {value}" for name, value in given.items())
        about["command"] = f"jaxrobust train configs/{configuration.name}{''.join(flags)}"
    return about


def commit() -> str | None:
    """The commit of the working directory, with `+` where tracked files differ from it; None outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run(
            # Without the lock that a kill in this moment would leave behind in the user's repository.
            ["git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read a run's manifest.

    Raises:
      ValueError: if the directory holds none, or one that is not JSON.
    """
    path = directory / NAME
    if not path.is_file():
        raise ValueError(f"{directory} is not a run: it has no {NAME}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def write_manifest(directory: Path, about: dict[str, Any]) -> None:
    """Write a run's manifest, all of it or nothing."""
    temporary = directory / f".{NAME}.{os.getpid()}"
    temporary.write_text(json.dumps(about, indent=2) + "\n")
    os.replace(temporary, directory / NAME)


def check_same(directory: Path, about: dict[str, Any]) -> None:
    """Refuse to go on with a run that another configuration, or other data, began.

    Raises:
      ValueError: naming what differs.
    """
    before = read_manifest(directory)
    remedy = "give another --run directory, or the configuration that began it"
    old, new = before.get("configuration"), about.get("configuration")
    if (old is None) != (new is None) or (old and new and old["sha256"] != new["sha256"]):
        was = old["name"] if old else "no file"
        raise ValueError(f"{directory} belongs to another configuration ({was}, of another text): {remedy}")
    if old and new:
        was, now = ({**given["arguments"], **given.get("reduction", {})} for given in (old, new))
        differ = [name for name in {**now, **was} if was.get(name) != now.get(name)]
        if differ:
            name = differ[0]
            raise ValueError(
                f"{directory} belongs to another configuration: {name} was {was.get(name)!r}, "
                f"now {now.get(name)!r}: {remedy}"
            )
    before = {"devices_per_worker": 1, **before}
    for name in ("seed", "batch_size", "accumulation", "workers_per_device", "devices_per_worker", "data"):
        if before.get(name) != about[name]:
            raise ValueError(f"{directory} belongs to another run: {name} was {before.get(name)!r}: {remedy}")
