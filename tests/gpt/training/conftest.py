"""A fixture that finds the program mpiexec."""

import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

from processes import start_on_two_ranks


@pytest.fixture(scope="module")
def mpiexec():
    """Start a program on two ranks: start_on_two_ranks without its first argument."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed", exc_type=ImportError)
    beside = Path(sys.executable).parent / "mpiexec"
    command = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not command:
        pytest.skip("no mpiexec on this machine")
    return partial(start_on_two_ranks, command)
