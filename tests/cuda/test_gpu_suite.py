"""The tests that need a GPU, checked without one: their GEMMs, and that one process runs them all."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_machines import Both
from cuda_op_checks import CHECKS, UNFUSED
from on_gpu import FUSED_BY_CUBLASLT
from paths import ROOT, SUPPORT, TESTS
from shim.host import HostRuntime
from tensorlite import DeviceError, cuda
from tensorlite.cuda.runtime.cublaslt import MatmulProblem
from tensorlite.cuda.runtime.device import epilogue_name

pytestmark = pytest.mark.usefixtures("compiler")


class Refusing(HostRuntime):
    """A runtime that only fuses epilogues; where we do not ask the library to, it raises the error of a CudaRuntime."""

    def gemm(self, a, b, out, *, compute, unfused=None, **extras):
        epilogue = epilogue_name(**extras)
        a_t, b_t = (not x.flags.c_contiguous for x in (a, b))
        problem = MatmulProblem(*a.shape[:1], *b.shape[1:], *b.shape[:1], a_t, b_t, str(a.dtype), str(out.dtype), compute, epilogue)
        if not problem.fusible:
            raise DeviceError(f"has no way to compute {problem}")
        super().gemm(a, b, out, compute=compute, **extras)


@pytest.mark.parametrize("precision", ["float32", "bf16", pytest.param("fp16", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", UNFUSED)
def test_the_gpu_suite_asks_for_epilogues_that_the_library_has(name, precision):
    """For each op and precision in that suite, some size must work; for each that it leaves out, no size does."""
    both = Both(precision)
    both.ops = [cuda.CUDAOps(precision, runtime=Refusing())] * 2
    function, shapes = CHECKS[name]
    works = False
    for shape in shapes:
        with contextlib.suppress(DeviceError):
            function(both, **shape)
            works = True
            break
    assert works == ((name, precision) in FUSED_BY_CUBLASLT)


SUITE = """
import os, pytest

@pytest.mark.gpu
@pytest.mark.parametrize("i", range(6))
def test_some(i):
    with open("workers", "a") as file:
        file.write(os.environ.get("PYTEST_XDIST_WORKER", "none") + "\\n")
"""


@pytest.mark.program
@pytest.mark.parametrize("flags", [["-n", "3"], ["-n", "3", "tests/cuda/gpu"]])
def test_the_suite_for_a_gpu_runs_in_one_process(flags, tmp_path):
    """This holds however pytest is called, with the project's settings and with CuPy (an empty package is enough here)."""
    (tmp_path / "tests" / "cuda" / "gpu").mkdir(parents=True)
    for name in ("test_ops.py", "test_steps.py"):
        (tmp_path / "tests" / "cuda" / "gpu" / name).write_text(SUITE)
    (tmp_path / "tests" / "test_other.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    shutil.copy(TESTS / "conftest.py", tmp_path / "tests")
    shutil.copytree(SUPPORT, tmp_path / "tests" / "support")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").touch()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *flags]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = outside | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    workers = (tmp_path / "workers").read_text().split()
    assert len(workers) == 12
    assert len(set(workers)) == 1


def test_all_tests_of_a_gpu_are_in_one_folder():
    """The suite has no other tests."""
    marked = {path for path in TESTS.rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()}
    assert marked - {Path(__file__)} == {*(TESTS / "cuda" / "gpu").glob("test_*.py")}  # here it is a text
