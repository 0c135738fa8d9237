"""The run-time compiler: a kernel file to the machine code of one architecture. It needs no GPU, no driver and no header file."""

import contextlib
import ctypes
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorlite.arrays import INSTALL_CUDA, DeviceError
from tensorlite.cache_dir import cache_folder, write_whole

KERNELS = Path(__file__).parents[1] / "kernels"
SEAL = hashlib.sha256().digest_size  # bytes at the end of a cached file, by which damage is noticed


class CompileError(DeviceError):
    """A kernel file that does not compile: its name, and what the compiler says."""


@dataclass(frozen=True)
class Usage:
    """What the assembler says of one kernel: the registers of a thread, and the bytes that did not fit in them."""

    registers: int
    spilled: int
    stack: int


@functools.cache
def library() -> ctypes.CDLL:
    """libnvrtc. Raises DeviceError, with the line to install, where there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # type: ignore

        return ctypes.CDLL(load_nvidia_dynamic_lib("nvrtc").abs_path)
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: pathfinder's own, when nothing is found
        raise DeviceError(f"no CUDA: the run-time compiler libnvrtc cannot be loaded ({error}); {INSTALL_CUDA}") from error


@functools.cache
def version() -> tuple[int, int]:
    """(13, 0) for CUDA 13.0."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@functools.cache
def architectures() -> tuple[int, ...]:
    """The compute capabilities that this compiler knows, as 80 for 8.0."""
    count = ctypes.c_int()
    library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    library().nvrtcGetSupportedArchs(known)
    return tuple(known)


def compile_file(file: str, architecture: int, defines: Mapping[str, object], folder: Path = KERNELS) -> tuple[bytes, str]:
    """The machine code (a cubin) of a kernel file with some words defined, and the compiler's log. Raises CompileError."""
    nvrtc, program = library(), ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), (folder / file).read_bytes(), file.encode(), 0, None, None)
    try:
        options = [f"--gpu-architecture=sm_{architecture}", "--std=c++17", "--ptxas-options=-v", f"--include-path={folder}"]
        options += [f"--define-macro={name}={value}" for name, value in defines.items()]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options)))
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        if status:
            raise CompileError(f"{file} does not compile for sm_{architecture} with {dict(defines)}:\n{log}")
        return _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(size_of: "ctypes._NamedFuncPointer", get: "ctypes._NamedFuncPointer", program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    get(program, text)
    return text.raw


def usage(log: str) -> dict[str, Usage]:
    """What a log says of each kernel."""
    pattern = r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers"
    return {
        name: Usage(int(registers), int(spilled), int(stack))
        for name, stack, spilled, registers in re.findall(pattern, log, re.DOTALL)
    }


def cubin(file: str, architecture: int, defines: Mapping[str, object]) -> bytes:
    """As compile_file, from the cache on disk where that has it whole: a training step's dozen modules take seconds to compile."""
    digest = hashlib.sha256(repr((version(), architecture, sorted(defines.items()))).encode())
    for source in sorted([KERNELS / file, *KERNELS.glob("*.cuh")]):
        digest.update(source.read_bytes())
    path = cache_folder() / "kernels" / f"{Path(file).stem}-sm_{architecture}-{digest.hexdigest()[:24]}.cubin"
    with contextlib.suppress(OSError):
        cached = path.read_bytes()
        if cached[-SEAL:] == hashlib.sha256(cached[:-SEAL]).digest():
            return cached[:-SEAL]
    code, _ = compile_file(file, architecture, defines)
    with contextlib.suppress(OSError):  # no place to store it: the next run compiles again
        write_whole(path, code + hashlib.sha256(code).digest())
    return code


def fingerprint() -> str:
    """A word that changes whenever any kernel file does."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(KERNELS.glob("*.cu*")))).hexdigest()[:8]
