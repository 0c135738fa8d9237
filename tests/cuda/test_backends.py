"""The backend that gpt.training.backends chooses where CUDA is: the kernels and their precision, or the reference."""

import re

import numpy as np
import pytest

import tensorlite.cuda.runtime.device
from fake_cupy import StandIn
from gpt.errors import ConfigError
from gpt.training import backends
from gpt.training.backends import select_backend
from shim.host import HostRuntime
from tensorlite import Device, DeviceError
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.runtime.device import best_precision
from tensorlite.loss_scale import LossScale

GPU = Device("cuda", np, "a GPU of the tests")


def fake_cuda(monkeypatch, error=None, capability=90):
    def make(precision):
        if error:
            raise DeviceError(error)
        host = HostRuntime()
        host.capability = capability
        host.precision = best_precision(capability) if precision == "auto" else precision
        return host

    monkeypatch.setattr(tensorlite.cuda.runtime.device, "CudaRuntime", make)


@pytest.mark.parametrize(
    ("capability", "precision", "itemsize"), [(90, "bf16", 2), (80, "bf16", 2), (75, "fp16", 2), (70, "float32", 4)]
)
def test_a_gpu_gets_the_kernels_in_the_best_precision_that_it_supports(capability, precision, itemsize, monkeypatch):
    """The description says which, and why."""
    fake_cuda(monkeypatch, capability=capability)
    backend = select_backend("auto", GPU)
    assert (backend.name, backend.make().precision, backend.itemsize) == ("fast", precision, itemsize)
    why = rf"\(auto: the GPU has compute capability {capability // 10}\.{capability % 10}\)"
    assert re.match(rf"kernels in {precision} {why} for .*attention", backend.description)


def test_a_precision_that_is_named(monkeypatch):
    fake_cuda(monkeypatch)
    backend = select_backend("fast", GPU, "tf32")
    assert (backend.make().precision, backend.itemsize) == ("tf32", 4)
    assert re.match("kernels in tf32 for .*attention", backend.description)
    assert select_backend("fast", GPU, "fp16").itemsize == 2
    assert select_backend("reference", GPU).make().name == "reference"


def test_the_shards_of_a_run_have_one_loss_scale(monkeypatch):
    """In float16; the other precisions have none."""
    fake_cuda(monkeypatch)
    monkeypatch.setattr("tensorlite.cuda.ops.SCALED", ("tf32",))
    backend = select_backend("fast", GPU, "tf32")
    scale = backend.make().loss_scale
    assert scale.value == LossScale()
    assert backend.make().loss_scale is scale
    assert select_backend("fast", GPU, "float32").make().loss_scale is None
    alone = [CUDAOps("tf32", runtime=HostRuntime()).loss_scale for _ in range(2)]
    assert alone[0] is not alone[1]


def test_a_gpu_that_cannot_run_them(monkeypatch):
    """auto falls back to the reference and says why; a run that asks for the kernels gets the reason as an error."""
    fake_cuda(monkeypatch, "Tesla M60 has compute capability 5.2")
    backend = select_backend("auto", GPU)
    assert backend.name == "reference"
    assert "Tesla M60" in backend.description
    for want, precision in (("fast", "auto"), ("auto", "bf16"), ("auto", "tf32"), ("auto", "fp16")):
        with pytest.raises(DeviceError, match="Tesla M60"):
            select_backend(want, GPU, precision)


@pytest.mark.parametrize("want", ["auto", "fast", "reference"])
def test_a_cpu_has_float32_alone(want):
    cpu = Device("cpu", np, "")
    assert select_backend(want, cpu, "float32").itemsize == 4
    with pytest.raises(ConfigError, match="precision bf16 needs the fast backend on a CUDA device"):
        select_backend(want, cpu, "bf16")


def test_own_ops_are_told():
    own = backends._overridden(CUDAOps).split(", ")
    assert {"attention", "mlp", "linear_cross_entropy", "layernorm"} <= set(own)
    assert "softmax" not in own


def refuse(code):
    raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")


def test_a_backend_that_is_chosen_has_run_a_kernel_and_a_matmul(fake_gpu):
    gpus = fake_gpu(count=2)
    gpus.current = 1
    assert select_backend("auto", GPU).name == "fast"
    assert [what for what, _ in gpus.used] == ["ones", "alloc", "spin", "synchronize"]
    assert {number for _, number in gpus.used} == {1}  # the device of a rank stays the current one


@pytest.mark.parametrize(
    ("algos", "load", "words"),
    [
        (1, refuse, r"driver cannot load code of CUDA 13\.0 .*UNSUPPORTED.*update the driver, or install CuPy"),
        (0, lambda code: None, "cuBLASLt 130000 has no way to compute .*bf16"),
    ],
)
def test_auto_falls_back_where_a_kernel_or_a_matmul_fails(algos, load, words, fake_gpu):
    fake_gpu(algos=algos, load=load)
    backend = select_backend("auto", GPU)
    assert backend.name == "reference"
    assert re.search(words, backend.description)
    with pytest.raises(DeviceError, match=words):
        select_backend("fast", GPU)


def test_auto_falls_back_where_a_launch_fails(fake_gpu):
    """This includes CuPy's own exceptions. But a GPU without free memory is no reason to try another backend on it."""
    gpus = fake_gpu()
    error = RuntimeError("cudaErrorNoKernelImageForDevice")

    def fail():
        raise error

    gpus.cupy.cuda.Device = lambda: StandIn("cupy.cuda.Device", id=0, compute_capability="90", synchronize=fail)
    assert "Imaginary GPU 0 cannot run the fast backend (cudaErrorNoKernel" in select_backend("auto", GPU).description
    error = MemoryError("taken")
    with pytest.raises(MemoryError):
        select_backend("auto", GPU)
