"""Configurations: Python files with one function, `experiment(*, ...) -> Experiment`.

The function builds real objects; its keyword arguments are the flags of the command line. A run records the file's
text, hash and arguments as data. It is executed only where a user names it (or keeps it in `configs/`), never from a
run.
"""

import hashlib
import inspect
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    """

    name: str
    source: str
    arguments: Mapping[str, Any]
    build: Callable[[], Experiment]

    @property
    def sha256(self) -> str:
        """Hex digest of the file's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()


def load_function(path: Path) -> tuple[Callable[..., Experiment], str]:
    """Execute a configuration file and take its function.

    Args:
      path: a Python file.

    Returns:
      The function `experiment` and the file's text.

    Raises:
      ValueError: if there is no such file, or no such function in it.
    """
    if not path.is_file():
        raise ValueError(f"no configuration file {path}: give the path of a Python file with a function `experiment`")
    source = path.read_text()
    try:
        names = runpy.run_path(str(path))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    function = names.get("experiment")
    if not callable(function):
        raise ValueError(f"{path} has no function `experiment`: a configuration defines one that returns an Experiment")
    return function, source


def configure(path: Path, arguments: Mapping[str, Any]) -> Configuration:
    """A configuration file with some of its arguments given.

    Args:
      path: the file.
      arguments: keyword arguments of its `experiment`; the others keep their defaults.

    Returns:
      The configuration, not yet built.

    Raises:
      ValueError: for a file without `experiment`, or an argument that it does not take.
    """
    function, source = load_function(path)
    parameters = inspect.signature(function).parameters
    unknown = [name for name in arguments if name not in parameters]
    if unknown:
        raise ValueError(f"{path.name} takes no argument {unknown[0]!r}: it has {', '.join(parameters)}")
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    resolved = {**defaults, **arguments}
    return Configuration(path.name, source, resolved, lambda: function(**resolved))
