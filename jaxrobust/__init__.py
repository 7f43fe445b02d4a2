"""Training that is robust and cheap, in JAX: thirteen papers' methods as pure functions that compose.

The methods (`attacks`, `objectives`, `zeroth_order`, `aggregation`, `implicit_bias`, `sampling`, `augment`) need JAX
and optax alone. `certification`, which needs SciPy's statistics, and the application (`models`, `data`, `train`,
`report`) are imported where they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxrobust import aggregation as aggregation
from jaxrobust import attacks as attacks
from jaxrobust import augment as augment
from jaxrobust import geometry as geometry
from jaxrobust import implicit_bias as implicit_bias
from jaxrobust import objectives as objectives
from jaxrobust import sampling as sampling
from jaxrobust import zeroth_order as zeroth_order
from jaxrobust.typing import backprop as backprop

if TYPE_CHECKING:
    from jaxrobust import certification as certification
    from jaxrobust import data as data
    from jaxrobust import models as models
    from jaxrobust import report as report
    from jaxrobust import solvers as solvers
    from jaxrobust import train as train

__version__ = "0.1.0"

_LATER = ("certification", "data", "models", "report", "solvers", "train")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"jaxrobust.{name}")
    raise AttributeError(f"module 'jaxrobust' has no attribute {name!r}")
