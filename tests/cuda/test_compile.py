"""The kernel files compile for real GPUs without spilling registers, and name what they replace."""

import itertools
import re
import sys
import types

import pytest

from compiled_files import files_of_a_run
from shim.host import KERNELS
from tensorlite import DeviceError
from tensorlite.cuda.launch import LARGE_BLOCK
from tensorlite.cuda.runtime import device, nvrtc
from tensorlite.cuda.runtime.device import MIN_ARCHITECTURE
from tensorlite.cuda.runtime.signature import read_signatures

SOURCES = {path.relative_to(KERNELS).as_posix(): path.read_text() for path in sorted(KERNELS.rglob("*.cu*"))}
HEADERS = {name for name in SOURCES if name.endswith(".cuh")}
DEPRECATED = "nvrtc: warning: Architectures prior to '<compute/sm>_75' are deprecated"  # of CUDA 12.8 and 12.9
BOUNDED = re.compile(r"__launch_bounds__\([^)]*\)\s*(\w+)")  # kernels that the compiler fits to the threads of a block
REGISTERS = 65536  # of a block, on every architecture
ARCHITECTURES = (60, 61, 70, 75, 80, 86, 89, 90, 100, 120)


def oldest(types):
    """Return the least compute capability on which kernels of these types run."""
    return max(MIN_ARCHITECTURE[name] for name in ("float32", "fp16", "bf16") if name == "float32" or name in types)


def compilations():
    """Return each file with its constants and each architecture on which they run.

    By default, those of float32 and bf16 are compiled for 8.0, and one of fp16 for 7.5.
    """
    cases = []
    for file, defines in files_of_a_run():
        name = " ".join([file, *(f"{key}={value}" for key, value in defines)])
        types = [value for _, value in defines]
        head_size = dict(defines)["D"] if file == "attention_mma.cu" else None
        for architecture in ARCHITECTURES:
            if architecture < oldest(types):
                continue
            quick = (architecture, head_size) == (75, 64) if "fp16" in types else architecture == 80
            marks = () if quick else pytest.mark.long
            cases.append(pytest.param(file, dict(defines), architecture, id=f"{name}-{architecture}", marks=marks))
    return cases


@pytest.fixture(scope="module")
def compiler():
    try:
        nvrtc.library()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("file", "defines", "architecture"), compilations())
def test_a_file_compiles_for_a_gpu_and_nothing_spills(file, defines, architecture, compiler):
    if architecture not in nvrtc.architectures():
        version = "{}.{}".format(*nvrtc.version())
        pytest.skip(f"the compiler of CUDA {version} has no code for compute capability {architecture / 10}; that of CUDA 12.9 has")
    code, log = nvrtc.compile_file(file, architecture, defines)
    assert code[:4] == b"\x7fELF"
    assert "warning" not in log.removeprefix(DEPRECATED)
    usage = nvrtc.usage(log)
    assert set(usage) == set(read_signatures(file, (KERNELS / file).read_text()))
    assert {name: (u.spilled, u.stack) for name, u in usage.items()} == dict.fromkeys(usage, (0, 0))
    for name in set(usage) - set(BOUNDED.findall(SOURCES[file])):
        assert usage[name].registers * LARGE_BLOCK <= REGISTERS, name


@pytest.mark.long
def test_rows_of_4096_channels_compile(compiler):
    """A block has 48 KiB of static shared memory. Registers may spill here."""
    nvrtc.compile_file("layernorm.cu", 80, {"scalar_t": "bf16", "C": 4096})


def test_every_file_is_compiled():
    assert {file for file, _ in files_of_a_run()} == set(SOURCES) - HEADERS
    assert {architecture for *_, architecture in (case.values for case in compilations())} == set(ARCHITECTURES)


def test_a_file_that_does_not_compile_is_named(compiler, tmp_path):
    (tmp_path / "broken.cu").write_text('extern "C" __global__ void k(float* x) { x[0] = y; }')
    with pytest.raises(nvrtc.CompileError, match=r"(?s)^broken\.cu does not compile for sm_80 with \{'D': 3\}:.*identifier \"y\""):
        nvrtc.compile_file("broken.cu", 80, {"D": 3}, tmp_path)


def test_what_spills_is_seen(compiler, tmp_path):
    (tmp_path / "spills.cu").write_text(
        'extern "C" __global__ void __launch_bounds__(1024, 2) k(float* x, int n) {\n'
        "float a[64];\n#pragma unroll\nfor (int i = 0; i < 64; i++) a[i] = x[i * n];\n"
        "for (int j = 0; j < n; j++)\n#pragma unroll\nfor (int i = 0; i < 64; i++) a[i] = a[i] * a[(i + 7) % 64] + x[j];\n"
        "#pragma unroll\nfor (int i = 0; i < 64; i++) x[i * n] = a[i]; }\n"
        'extern "C" __global__ void indexed(float* x, int n) {\n'
        "float a[64]; for (int i = 0; i < n; i++) a[i % 64] = x[i]; for (int i = 0; i < n; i++) x[0] += a[7 * i % 64]; }"
    )
    usage = nvrtc.usage(nvrtc.compile_file("spills.cu", 80, {}, tmp_path)[1])
    assert usage["k"].spilled > 0
    assert usage["indexed"].stack >= 256


def test_compiled_code_is_kept(compiler, tmp_path, monkeypatch):
    """Its file name depends on everything that the code depends on. Where no file can be written, it is compiled again."""
    calls, compile_file = [], nvrtc.compile_file
    monkeypatch.setattr(nvrtc, "compile_file", lambda *args: calls.append(args) or compile_file(*args))
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "cache"))
    first = nvrtc.cubin("reduce.cu", 80, {"scalar_t": "float", "VEC": 4})
    assert nvrtc.cubin("reduce.cu", 80, {"scalar_t": "float", "VEC": 4}) == first
    assert len(calls) == 1
    for architecture, vec in ((89, 4), (80, 1)):
        nvrtc.cubin("reduce.cu", architecture, {"scalar_t": "float", "VEC": vec})
    assert len(calls) == len(list((tmp_path / "cache" / "kernels").iterdir())) == 3
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "file"))
    assert nvrtc.cubin("reduce.cu", 80, {"scalar_t": "float", "VEC": 4}) == first


def test_a_missing_compiler_is_a_device_error(monkeypatch):
    def missing(_):
        raise RuntimeError("nowhere")

    for module in (None, types.SimpleNamespace(load_nvidia_dynamic_lib=missing)):
        monkeypatch.setitem(sys.modules, "cuda.pathfinder", module)
        with pytest.raises(DeviceError, match=r"no CUDA: the run-time compiler libnvrtc cannot be loaded .*pip install"):
            nvrtc.library.__wrapped__()


def test_code_for_a_gpu_is_of_its_family(monkeypatch):
    """A device of compute capability 8.x runs code for 8.0 to 8.x but none for a Jetson, and no code for 9.0."""
    monkeypatch.setattr(nvrtc, "architectures", lambda: (75, 80, 86, 87, 90, 100, 101))
    monkeypatch.setattr(nvrtc, "version", lambda: (12, 8))
    for architecture, target in ((80, 80), (86, 86), (87, 87), (89, 86), (90, 90), (100, 100), (101, 101), (103, 100)):
        assert device.target_architecture(architecture) == target
    with pytest.raises(DeviceError, match=r"CUDA 12\.8 has no code for compute capability 12\.0; install CuPy"):
        device.target_architecture(120)
    with pytest.raises(DeviceError, match=r"CUDA 12\.8 has no code for compute capability 6\.1; that of CUDA 12 has.*cuda12x"):
        device.target_architecture(61)


@pytest.mark.long
def test_the_path_of_7_5_compiles_for_a_newer_gpu(compiler):
    """Its code differs, and fp16 alone needs it."""
    defines = {"scalar_t": "fp16", "D": 64}
    own, _ = nvrtc.compile_file("attention_mma.cu", 90, defines)
    older, log = nvrtc.compile_file("attention_mma.cu", 90, {**defines, "SM75_PATH": 1})
    assert own != older
    assert all((u.spilled, u.stack) == (0, 0) for u in nvrtc.usage(log).values())


def test_assembly_is_in_one_file():
    assert [name for name, text in SOURCES.items() if re.search(r"\basm\b", text)] == ["ptx.cuh"]


@pytest.mark.parametrize("file", sorted(set(SOURCES) - HEADERS))
def test_a_kernel_file_names_what_it_replaces(file):
    """Its first lines name the file of the reference, or a kernel file that names it. Sums, copies and a wait replace nothing."""
    header = "".join(itertools.takewhile(lambda line: line.startswith("//"), SOURCES[file].splitlines(keepends=True)))
    named = re.findall(r"[\w/]+\.(?:py|cu)\b", header)
    root = KERNELS.parents[2]
    for name in named:
        assert any((folder / name).is_file() for folder in (root, root / "tensorlite" / "reference", KERNELS)), name
    assert named or file in ("reduce.cu", "spin.cu", "layout.cu", "convert.cu")
    assert all(name.endswith(".py") or name in SOURCES for name in named)
