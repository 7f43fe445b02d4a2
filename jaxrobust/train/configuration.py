"""Configurations: Python files with one function, `experiment(*, ...) -> Experiment`.

The function builds real objects; its keyword arguments are the flags of the command line. A run records the file's
text, hash and arguments as data. It is executed only where a user names it (or keeps it in `configs/`), never from a
run.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxrobust.train.experiment import Experiment


@dataclass(frozen=True)
class Configuration:
    """A configuration file and the arguments it was called with.

    Attributes:
      name: the file's name.
      source: its text.
      arguments: keyword arguments of `experiment`, defaults included; numbers, strings, booleans and lists of them.
      build: `() -> Experiment`.
      reduction: flags by which the command line replaced the reduction; empty where it did not.
    """

    name: str
    source: str
    arguments: Mapping[str, Any]
    build: Callable[[], Experiment]
    reduction: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hex digest of the file's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()


def load_function(path: Path, sha256: str | None = None) -> tuple[Callable[..., Experiment], str]:
    """Execute a configuration file and take its function.

    Args:
      path: a Python file.
      sha256: hex digest that its text must have; it is compared before anything is executed. None for any.

    Returns:
      The function `experiment` and the file's text.

    Raises:
      ValueError: if there is no such file, no such function in it, or its text is another.
    """
    if not path.is_file():
        raise ValueError(f"no configuration file {path}: give the path of a Python file with a function `experiment`")
    text = path.read_bytes()
    if sha256 is not None and hashlib.sha256(text).hexdigest() != sha256:
        raise ValueError(
            f"{path} is not the configuration that trained the run (its text differs): name it by --config"
        )
    names = {"__name__": "configuration", "__file__": str(path)}
    try:
        exec(compile(text, str(path), "exec"), names)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    function = names.get("experiment")
    if not callable(function):
        raise ValueError(f"{path} has no function `experiment`: a configuration defines one that returns an Experiment")
    return function, text.decode()


def configure(path: Path, arguments: Mapping[str, Any], sha256: str | None = None) -> Configuration:
    """A configuration file with some of its arguments given.

    Args:
      path: the file.
      arguments: keyword arguments of its `experiment`; the others keep their defaults.
      sha256: as in `load_function`.

    Returns:
      The configuration, not yet built.

    Raises:
      ValueError: for a file without `experiment`, an argument that it does not take, or one that is no plain value.
    """
    function, text = load_function(path, sha256)
    parameters = inspect.signature(function).parameters
    unknown = [name for name in arguments if name not in parameters]
    if unknown:
        raise ValueError(f"{path.name} takes no argument {unknown[0]!r}: it has {', '.join(parameters)}")
    resolved = {name: arguments.get(name, parameter.default) for name, parameter in parameters.items()}
    for name, value in resolved.items():
        # What JSON gives back as a list was a tuple where the default is one.
        if isinstance(parameters[name].default, tuple) and isinstance(value, list):
            resolved[name] = tuple(value)
    try:
        recorded = json.loads(json.dumps(resolved))
    except TypeError as error:
        raise ValueError(f"{path.name}: arguments must be numbers, texts or lists of them ({error})") from error
    return Configuration(path.name, text, recorded, lambda: function(**resolved))
