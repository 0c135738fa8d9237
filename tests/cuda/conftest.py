"""Fixtures of the CUDA backend's tests."""

import sys

import pytest

import tensorlite.cuda.runtime.device
from fake_cublaslt import FakeLibrary
from fake_cupy import Gpus
from shim.host import require_compiler
from tensorlite.cuda.runtime import nvrtc


@pytest.fixture(scope="session")
def compiler():
    """Skip the test unless kernels can be compiled for the CPU."""
    require_compiler()


@pytest.fixture
def fake_gpu(monkeypatch, tmp_path):
    """Replace CuPy and cuBLASLt by stand-ins. Kernels are not really compiled."""

    def make(algos=1, **options):
        gpus = Gpus(**options)
        monkeypatch.setitem(sys.modules, "cupy", gpus.cupy)
        monkeypatch.setattr(tensorlite.cuda.runtime.device, "Library", lambda: FakeLibrary(algos))
        return gpus

    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80, 90))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "compile_file", lambda *_: (b"code", ""))
    return make
