"""The runtime of a CUDA device, on stand-ins of CuPy and cuBLASLt."""

import shutil

import pytest

from tensorlite import DeviceError
from tensorlite.cuda.runtime import nvrtc
from tensorlite.cuda.runtime.device import CudaRuntime


def test_heads_too_large_for_shared_memory(fake_gpu):
    fake_gpu()
    runtime = CudaRuntime()
    assert runtime._load("attention.cu", "attention_forward", {"D": 64}, 0)
    most = 99 << 10
    for shared in (123136, most, most - 8):
        with pytest.raises(DeviceError, match=f"needs {shared} bytes of shared memory, .* has {most}; use smaller heads"):
            runtime._load("attention.cu", "attention_forward", {"D": 384}, shared)


def test_a_choice_is_of_the_kernels_that_it_was_made_with(fake_gpu, monkeypatch):
    fake_gpu()
    first = CudaRuntime().autotune_cache.path
    assert CudaRuntime().autotune_cache.path == first
    monkeypatch.setattr(nvrtc, "KERNELS", changed_kernels(first.parent))
    assert CudaRuntime().autotune_cache.path != first


def changed_kernels(folder):
    """Return a copy of the kernel files with one of them changed."""
    shutil.copytree(nvrtc.KERNELS, folder / "kernels-of-tomorrow")
    (folder / "kernels-of-tomorrow" / "reduce.cu").write_text("// other")
    return folder / "kernels-of-tomorrow"
