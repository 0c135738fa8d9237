"""The runtime of a CUDA device, on stand-ins of CuPy and cuBLASLt."""

import shutil

import pytest

from tensorlite import DeviceError
from tensorlite.cuda.ops import PRECISIONS
from tensorlite.cuda.runtime import nvrtc
from tensorlite.cuda.runtime.device import CudaRuntime


@pytest.mark.parametrize(
    ("capability", "sm75_path", "precision", "expected"),
    [
        (90, "", "auto", "bf16"),
        (80, "", "auto", "bf16"),
        (80, "", "tf32", "tf32"),
        (75, "", "auto", "fp16"),
        (75, "", "float32", "float32"),
        (75, "1", "auto", "fp16"),
        (70, "", "auto", "float32"),
        (60, "1", "auto", "float32"),
        (90, "1", "auto", "fp16"),
        (
            75,
            "",
            "bf16",
            "Imaginary GPU 0 has compute capability 7.5, and the fast backend in bf16 needs 8.0 or later; use --precision fp16",
        ),
        (75, "", "tf32", "in tf32 needs 8.0 or later; use --precision fp16"),
        (90, "1", "bf16", "GPU 0 on the path of compute capability 7.5 has compute capability 7.5, .* bf16 needs 8.0"),
        (70, "", "fp16", "has compute capability 7.0, .* in fp16 needs 7.5 or later; use --precision float32"),
        (52, "", "auto", "has compute capability 5.2, .* in float32 needs 6.0 or later; use --backend reference"),
        (52, "", "bf16", "has compute capability 5.2, .* in bf16 needs 8.0 or later; use --backend reference"),
    ],
)
def test_a_precision_needs_a_compute_capability(capability, sm75_path, precision, expected, fake_gpu, monkeypatch):
    monkeypatch.setattr(nvrtc, "architectures", lambda: (52, 60, 70, 75, 80, 90))
    monkeypatch.setenv("TENSORLITE_SM75_PATH", sm75_path)
    fake_gpu(capability=capability)
    if expected in PRECISIONS:
        assert CudaRuntime(precision).precision == expected
    else:
        with pytest.raises(DeviceError, match=expected):
            CudaRuntime(precision)


def test_the_path_of_7_5_on_a_newer_device(fake_gpu, monkeypatch):
    """It is compiled for the device itself, with the limits of 7.5. Choices of algorithms are stored apart."""
    compiled = []
    fake_gpu()
    usual = CudaRuntime("fp16")
    monkeypatch.setenv("TENSORLITE_SM75_PATH", "1")
    monkeypatch.setattr(nvrtc, "compile_file", lambda *arguments: compiled.append(arguments) or (b"code", ""))
    runtime = CudaRuntime("fp16")
    assert compiled == [("spin.cu", 90, {"SM75_PATH": 1})]
    assert (usual.shared_memory, runtime.shared_memory) == (99 << 10, 64 << 10)
    assert usual.autotune_cache.path != runtime.autotune_cache.path


def test_heads_too_large_for_shared_memory(fake_gpu):
    fake_gpu()
    runtime = CudaRuntime()
    assert runtime._load("attention.cu", "attention_forward", {"D": 64}, 0)
    most = 99 << 10
    for shared in (123136, most, most - 8):
        with pytest.raises(DeviceError, match=f"needs {shared} bytes of shared memory, .* has {most}; use smaller heads"):
            runtime._load("attention.cu", "attention_forward", {"D": 384}, shared)


def test_none_is_a_null_pointer(fake_gpu):
    fake_gpu()
    runtime, launched = CudaRuntime(), []
    runtime._kernels["elementwise.cu", "accumulate_loss"] = lambda *args, **kwargs: launched.append(args)
    runtime.launch("elementwise.cu", "accumulate_loss", 1, 1, total=None, loss="loss", weight=2.0, out="out")
    assert launched == [((1,), (1,), (0, "loss", 2.0, "out"))]


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
