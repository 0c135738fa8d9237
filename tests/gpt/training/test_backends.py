"""The backends of a run: which class computes, in what, and what the user is told of it."""

import re

import numpy as np
import pytest

import tensorlite.cuda.runtime.device
from gpt.training.backends import select_backend
from shim.host import HostRuntime
from tensorlite import Device, ReferenceOps, cpu
from tensorlite.cuda import CUDAOps

CPU, GPU = Device("cpu", np, ""), Device("cuda", np, "a GPU of the tests")


@pytest.mark.parametrize(
    ("want", "kind", "name", "sharded", "told"),
    [
        ("auto", cpu.CPUOps, "fast", True, "fewer passes over memory in .*layernorm.* and adamw; else the reference"),
        ("fast", cpu.CPUOps, "fast", True, "fewer passes over memory in .*layernorm.* and adamw; else the reference"),
        ("reference", ReferenceOps, "reference", False, "plain array code, one function per op"),
    ],
    ids=["auto", "fast", "reference"],
)
def test_the_backends_of_a_cpu(want, kind, name, sharded, told):
    """They trust the text, which is checked as it is read: a test of every batch would cost time, and on a GPU a wait."""
    backend = select_backend(want, CPU)
    assert (backend.name, backend.sharded, backend.itemsize) == (name, sharded, 4)
    assert re.fullmatch(told, backend.description)
    ops = backend.make()
    assert (type(ops), ops.check) == (kind, False)
    assert backend.make() is not ops  # one per shard


@pytest.mark.parametrize(("precision", "itemsize"), [("bf16", 2), ("fp16", 2), ("tf32", 4), ("float32", 4)])
def test_the_shards_of_a_gpu_share_its_runtime(precision, itemsize, monkeypatch):
    """The libraries are loaded once, before any work."""
    runtimes = []

    def make(precision):
        runtimes.append(HostRuntime())
        runtimes[-1].precision = precision
        return runtimes[-1]

    monkeypatch.setattr(tensorlite.cuda.runtime.device, "CudaRuntime", make)
    backend = select_backend("fast", GPU, precision)
    assert len(runtimes) == 1
    assert (backend.sharded, backend.itemsize) == (False, itemsize)
    for _ in range(2):
        ops = backend.make()
        assert (type(ops), ops.precision, ops.check, ops.runtime) == (CUDAOps, precision, False, runtimes[0])
    assert len(runtimes) == 1
