"""Settings for all tests: Hypothesis profiles, the mark `program`, and the Shakespeare corpus.

At the end it prints the kernels that the tests ran on.
"""

import contextlib
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy loads: small matrices, and a test process for each core
os.environ.setdefault("VECLIB_MAXIMUM_THREADS", "1")  # the same for a Mac's library

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from kernels import kernels

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
FIXED = {"derandomize": True, "database": None}  # the same examples on every run and every machine
settings.register_profile("dev", max_examples=15, **FIXED, **COMMON)
settings.register_profile("ci", max_examples=100, **FIXED, **COMMON)
settings.register_profile("alarms", max_examples=1000, **FIXED, **COMMON)
settings.register_profile("deep", max_examples=5000, **COMMON)
settings.register_profile("mut", max_examples=10, phases=[Phase.explicit, Phase.generate], **FIXED, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
with contextlib.suppress(ImportError, AttributeError):  # newer ones draw constants of the modules that happen to be loaded, too
    from hypothesis.internal.conjecture import providers

    providers._get_local_constants = lambda nothing=providers._local_constants: nothing

# ---- tests that start programs: marked, so that matrix.py can run the others alone ----

STARTERS = {"compiler", "library", "mpiexec", "shakespeare"}  # fixtures that start programs
STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "os.spawn", "os.startfile")
LOOK_UP = (
    "g++",  # the shim's compiler, whose kernels the test itself calls
    *("fc-list", "system_profiler"),  # matplotlib, where it draws for the first time on a machine, looks for fonts
    *("ldconfig", "gcc", "ld"),  # ctypes looks for a library
)
may_start, refused = True, []


def refuse_programs(event, arguments):
    """In a test without the mark no program starts, but for those of LOOK_UP."""
    if event in STARTS and not may_start and os.path.basename(str(arguments[0])) not in LOOK_UP:
        refused.append(f"{event} {arguments[:1]}")
        raise RuntimeError(f"a test that starts a program needs the mark `program`: {refused[-1]}")


sys.addaudithook(refuse_programs)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if STARTERS & set(item.fixturenames):
            item.add_marker("program")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    global may_start
    may_start = any(map(item.get_closest_marker, ("program", "gpu")))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """Also where the refusal was caught, and the test went on without the program."""
    global may_start
    try:
        yield
        assert not refused, f"a test that starts a program needs the mark `program`: {refused}"
    finally:
        may_start = True
        refused.clear()


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"kernels: {kernels()}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where CuPy is, one worker runs all of tests/cuda/gpu: the GPU has one memory, and the autotuner one file."""
    if importlib.util.find_spec("cupy") is None:
        return None  # as --dist says

    from xdist.scheduler import LoadScopeScheduling

    class OneForTheGpu(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "gpu" if nodeid.startswith("tests/cuda/gpu/") else nodeid

    return OneForTheGpu(config, log)


@pytest.fixture(autouse=True)
def same_random_values(request) -> None:
    """Let RANDOM of a module begin anew, so that a test has the same values whatever tests ran before it in its process."""
    random = getattr(request.module, "RANDOM", None)
    generator = getattr(random, "__self__", random)  # it may be a generator, or the method of one
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(scope="session")
def shakespeare() -> str:
    from gpt.data import tiny_shakespeare
    from gpt.errors import DataError

    try:
        return tiny_shakespeare()
    except DataError as error:
        pytest.skip(str(error))
