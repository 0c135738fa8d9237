"""Hypothesis profiles, and the corpus where it can be had."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy loads: small matrices, and a test process for each core

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


@pytest.fixture(scope="session")
def shakespeare() -> str:
    from gpt.data import tiny_shakespeare
    from gpt.errors import DataError

    try:
        return tiny_shakespeare()
    except DataError as error:
        pytest.skip(str(error))
