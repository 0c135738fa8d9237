"""Hypothesis profiles, and the corpus where it can be had."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy loads: small matrices, and a test process for each core

import importlib.util
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("dev", max_examples=50, **COMMON)
settings.register_profile("ci", max_examples=200, derandomize=True, database=None, **COMMON)
settings.register_profile("alarms", max_examples=1000, derandomize=True, database=None, **COMMON)
settings.register_profile("deep", max_examples=5000, **COMMON)
settings.register_profile(
    "mut", max_examples=10, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate], **COMMON
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where CuPy is, one worker runs all of test_gpu.py: the memory of a GPU is one, and so is the file of timed choices."""
    if importlib.util.find_spec("cupy") is None:
        return None  # as --dist says

    from xdist.scheduler import LoadScopeScheduling

    class OneForTheGpu(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "gpu" if "test_gpu.py" in nodeid else nodeid

    return OneForTheGpu(config, log)


@pytest.fixture(scope="session")
def shakespeare() -> str:
    from gpt.data import tiny_shakespeare
    from gpt.errors import DataError

    try:
        return tiny_shakespeare()
    except DataError as error:
        pytest.skip(str(error))
