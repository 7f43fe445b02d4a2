"""A classifier that the command line finds by its name, MODULE:FUNCTION."""

import functools
import importlib
import sys

import jax

from jaxrobust.attacks.checks import check_model
from jaxrobust.attacks.search import Randomized
from jaxrobust.attacks.worst_case import in_order
from jaxrobust.typing import Predict, Source


def find_function(subject: str) -> Predict | Randomized:
    """What MODULE:FUNCTION names, as Python finds modules, from the working directory first, which joins `sys.path`.

    Args:
      subject: such as "package.module:classifier.logits".

    Returns:
      A function from images to logits, or a `Randomized`.

    Raises:
      ValueError: if there is none of that name, or its module cannot be imported.
    """
    name, _, attribute = subject.partition(":")
    if "/" in name or name.startswith(".") or name.endswith(".py"):
        raise ValueError(f"{name} is no module: name it as Python imports it, without folder and .py")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"{name} imports {error.name}, which is not installed") from error
        raise ValueError(f"no module {error.name}: name it as Python imports it, from the working directory") from error
    except Exception as error:  # Whatever a user's module does when it is imported.
        raise ValueError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        found = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise ValueError(f"{name} has no function {attribute or '(none given)'}: give MODULE:FUNCTION") from error
    if not callable(found) and not isinstance(found, Randomized):
        raise ValueError(f"{subject} is a {type(found).__name__}, and no function from images to logits")
    return found


def check_function(subject: str, logits_fn: Predict | Randomized, source: Source) -> None:
    """Show a function a few images, by their shape, and its classes the labels.

    Args:
      subject: its name.
      logits_fn: what was found under it.
      source: examples in order.

    Raises:
      ValueError: if it fails on images of that shape, gives no logits, or has fewer classes than the labels.
    """
    images, labels = in_order(jax.random.key(0), source)
    try:
        classes = check_model(logits_fn, images[:2])
    except ValueError as error:
        raise ValueError(f"{subject}: {error}") from error
    except Exception as error:  # Whatever a user's function does.
        told = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ValueError(f"{subject} failed on images of shape {images[:2].shape}: {told}") from error
    if labels.max() >= classes:
        raise ValueError(f"labels must lie in [0, {classes}), the classes of the logits, got {labels.max()}")
