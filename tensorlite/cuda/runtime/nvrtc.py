"""The run-time compiler NVRTC: it compiles a kernel file to machine code for one architecture.

It needs no GPU, no driver and no header file.
"""

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
OPTIONS = ("--std=c++17", "--ptxas-options=-v", "--generate-line-info")  # the last lets tools name the lines of the machine code
SEAL = hashlib.sha256().digest_size  # bytes of the digest at the end of a cached file, which shows damage


class CompileError(DeviceError):
    """A kernel file that does not compile. The message has its name and the compiler's log."""


@dataclass(frozen=True)
class Usage:
    """The resources of one kernel, as the assembler reports them."""

    registers: int  # per thread
    spilled: int  # bytes that did not fit in registers, per thread
    stack: int  # bytes per thread


@functools.cache
def library() -> ctypes.CDLL:
    """Load libnvrtc. Raises DeviceError, with the line to install it, where there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # type: ignore

        return ctypes.CDLL(load_nvidia_dynamic_lib("nvrtc").abs_path)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # no pathfinder, not found, not loadable, a Mac
        raise DeviceError(f"no CUDA: the run-time compiler libnvrtc cannot be loaded ({error}); {INSTALL_CUDA}") from error


@functools.cache
def version() -> tuple[int, int]:
    """Return the version of NVRTC, (13, 0) for CUDA 13.0."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@functools.cache
def architectures() -> tuple[int, ...]:
    """Return the compute capabilities that this compiler knows, 80 for 8.0."""
    count = ctypes.c_int()
    library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    library().nvrtcGetSupportedArchs(known)
    return tuple(known)


def compile_file(file: str, architecture: int, defines: Mapping[str, object], folder: Path = KERNELS) -> tuple[bytes, str]:
    """Compile a kernel file. Return its machine code (a cubin) and the compiler's log. Raises CompileError.

    architecture: 80 for compute capability 8.0.
    defines: the compile-time constants.
    """
    nvrtc, program = library(), ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), (folder / file).read_bytes(), file.encode(), 0, None, None)
    try:
        options = [f"--gpu-architecture=sm_{architecture}", *OPTIONS, f"--include-path={folder}"]
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
    """Read the resources of each kernel from a compiler's log."""
    pattern = r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers"
    return {
        name: Usage(int(registers), int(spilled), int(stack))
        for name, stack, spilled, registers in re.findall(pattern, log, re.DOTALL)
    }


def cubin(file: str, architecture: int, defines: Mapping[str, object]) -> bytes:
    """Return the machine code of a kernel file, from the cache on disk if an undamaged copy is there.

    The dozen modules of a training step take seconds to compile.
    """
    digest = hashlib.sha256(repr((version(), OPTIONS, architecture, sorted(defines.items()))).encode())
    for source in sorted([KERNELS / file, *KERNELS.glob("*.cuh")]):
        digest.update(source.read_bytes())
    path = cache_folder() / "kernels" / f"{Path(file).stem}-sm_{architecture}-{digest.hexdigest()[:24]}.cubin"
    with contextlib.suppress(OSError):
        cached = path.read_bytes()
        if cached[-SEAL:] == hashlib.sha256(cached[:-SEAL]).digest():
            return cached[:-SEAL]
    code, _ = compile_file(file, architecture, defines)
    with contextlib.suppress(OSError):  # it cannot be stored, so the next run compiles again
        write_whole(path, code + hashlib.sha256(code).digest())
    return code


def fingerprint() -> str:
    """Return a word that changes whenever any kernel file changes."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(KERNELS.glob("*.cu*")))).hexdigest()[:8]
