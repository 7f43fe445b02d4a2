"""Eight simulated CPU devices, for every test."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = "--xla_force_host_platform_device_count=8"
# Compilation is most of the suite's time; what is tested is arithmetic, not how fast it is. For tests that run long and
# compile little, FAST_COMPILE=0 leaves these out.
if os.environ.get("FAST_COMPILE", "1") != "0":
    FLAGS += " --xla_backend_optimization_level=0"
    # An XLA that does not know a flag ends the process: these are given to the versions that were seen to know them.
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
        FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden numbers beside the checkout; tests that read it skip without it."""
    if not SHARED.exists():
        pytest.skip("no folder of shared data beside the checkout")
    return SHARED
