"""The kernel files on the CPU: a runtime for the backend ``cuda`` that has NumPy's arrays and ``cuda_on_cpu.h``'s threads."""

import contextlib
import ctypes
import functools
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from paths import ROOT
from tensorlite.cuda.runtime.memory_pool import PooledBlock
from tensorlite.cuda.runtime.signature import read_signatures

SHIM = Path(__file__).with_name("cuda_on_cpu.h")
KERNELS = ROOT / "tensorlite" / "cuda" / "kernels"
COMPILE = [
    *("g++", "-x", "c++", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-w", "-fmax-errors=3"),
    *("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=0"),  # its longjmp takes a jump to another stack for an attack
    "-ffp-contract=off",  # a b + c rounds twice, on a processor with a fused multiply-add too
    *("-fsanitize=alignment,bounds,shift-exponent", "-fno-sanitize-recover=all"),
]
# The kernels stand in a namespace without a name, so that they may be called like a function of the C library.
# What CUDA's compiler would get as -D is defined here, where it cannot get into the shim and the C library.
SOURCE = """{defines}
namespace {{
#include "{file}"
const shim::Entry entries[] = {{{entries}}};
}}
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT int stack_bytes() {{ return shim::stack_bytes * shim::max_threads; }}
EXPORT void use_stacks(char* memory) {{ shim::stacks = memory; }}
EXPORT int parameters(int entry, int* sizes, char* kinds) {{ return entries[entry].parameters(sizes, kinds); }}
EXPORT const char* launch(int entry, const unsigned* size, unsigned shared, bool in_reverse, void** arguments) {{
    return entries[entry].launch(size, shared, in_reverse, arguments);
}}
"""
GUARD = 4096  # bytes of poison before and after every array


class KernelError(RuntimeError):
    """What a kernel did that CUDA forbids."""


def require_compiler():
    """Skip the test where there is no g++."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("no Linux with g++: the CUDA kernels are not run on the CPU", allow_module_level=True)


def build(sources, file, defines, optimize):
    """The shared library of one kernel file, from the cache or compiled with an option like "-O2"; the path."""
    used = {name: text for name, text in sources.items() if name == file or name.endswith(".cuh")}
    entries = ", ".join(f"shim::Kernel<{name}>::entry" for name in read_signatures(file, sources[file]))
    lines = "\n".join(f"#define {key} {int(value) if isinstance(value, bool) else value}" for key, value in sorted(defines.items()))
    used["entry.cpp"] = SOURCE.format(file=file, entries=entries, defines=lines)
    used[SHIM.name] = SHIM.read_text()
    key = hashlib.sha256(repr((sorted(used.items()), COMPILE, optimize)).encode()).hexdigest()[:24]
    cache = Path(tempfile.gettempdir()) / f"tensorlite-shim-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    library = cache / f"{Path(file).stem}-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            for name, text in used.items():
                Path(folder, name).write_text(text)
            # Two steps, as the linker, were it told of -fsanitize, would add a library that we have replaced.
            for command in (
                [*COMPILE, optimize, "-include", SHIM.name, "-c", "entry.cpp", "-o", "entry.o"],
                ["g++", "-shared", "entry.o", "-o", "entry.so"],
            ):
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise KernelError(f"{file} does not compile:\n{done.stderr}")
            os.replace(Path(folder, "entry.so"), library)  # at once: another process sees all of it or nothing
    return library


class Kernel:
    """One entry of a compiled file. signature: what its source says."""

    def __init__(self, library, entry, signature):
        self.name = signature.kernel
        self.run = functools.partial(library.launch, entry)
        library.launch.restype = ctypes.c_char_p
        sizes, kinds = (ctypes.c_int * 256)(), ctypes.create_string_buffer(256)
        count = library.parameters(entry, sizes, kinds)
        compiled = zip(sizes[:count], kinds.raw[:count].decode(), strict=True)
        self.parameters = dict(zip(signature.types, compiled, strict=True))

    def pack(self, values):
        """The arguments, in order, as bytes, checked against the compiled parameters: CUDA would read whatever it gets."""
        packed = []
        for (name, (size, kind)), arg in zip(self.parameters.items(), values, strict=True):
            value, given = as_bytes(arg)
            if given == "P" and kind == "F" and arg is not None and arg.dtype != np.float32:
                raise TypeError(f"{self.name}: argument {name} is a pointer to {arg.dtype}, its parameter to float")
            if (value.nbytes, given) != (size, kind.replace("F", "P")):
                raise TypeError(f"{self.name}: argument {name} has {value.nbytes} bytes ({given}), its parameter {size} ({kind})")
            packed.append(value)
        return packed


def as_bytes(arg):
    """An argument as CUDA passes it, and its kind: P pointer, i integer, f floating, s struct."""
    if arg is None:
        return np.array(0, np.uintp), "P"
    if isinstance(arg, np.ndarray) and not (arg.ndim == 0 and arg.dtype.names):
        return np.array(arg.__array_interface__["data"][0], np.uintp), "P"
    if isinstance(arg, int):
        arg = np.int64(arg)
    value = np.array(arg)  # a copy: a captured value stays what it was
    return value, {"V": "s", "f": "f"}.get(value.dtype.kind, "i")


GUARDED = 0xA5  # in every byte of a guard zone: no NaN, which a kernel might read there and write back


class Guarded(np.ndarray):
    """The memory behind an array of ``empty``, with where its guard zones are."""


def empty(shape, dtype):
    """An array of poison between two guard zones, aligned as cudaMalloc does."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = Guarded(count + 2 * GUARD + 256, np.uint8)
    room[:] = 0xFF
    start = GUARD + -room.__array_interface__["data"][0] % 256
    zones = {"before": slice(start - GUARD, start), "behind": slice(start + count, start + count + GUARD)}
    for zone in zones.values():
        room[zone] = GUARDED
    room.zones = zones
    return room.view(np.ndarray)[start : start + count].view(dtype).reshape(shape)


def owner_of(array):
    """What owns an array's memory: bytes with guard zones, of the array itself or of the pooled block that it stands on."""
    while array is not None and not isinstance(array, Guarded):
        array = array.block if isinstance(array, PooledBlock) else getattr(array, "base", None)
    return array


def unpooled(array):
    """The same array without its pooled block: a GEMM that is recorded, like a launch, keeps addresses and no memory from reuse."""
    owner = owner_of(array)
    if owner is None:
        return array
    at = HostRuntime.address(array) - HostRuntime.address(owner)
    return np.ndarray(array.shape, array.dtype, owner, at, array.strides)


def check_guards(name, owners):
    """Raise where the guard zone of an argument's memory was written to."""
    for what, owner in owners:
        if owner is None:
            continue
        for where, zone in owner.zones.items():
            if (owner[zone] != GUARDED).any():
                owner[zone] = GUARDED
                raise KernelError(f"{name} wrote {where} the array {what}")


def is_matrix(x):
    """Whether a matrix is C-contiguous or the transpose of one that is."""
    return x.ndim == 2 and (x.flags.c_contiguous or x.T.flags.c_contiguous)


def matmul(a, b):
    """a b in float32, the terms of each sum added one after the other: a BLAS has an order for each processor and each shape."""
    out = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(len(b)):
        out += a[:, k, None] * b[k]
    return out


C, CUBIC = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)


def tanh(x):
    """The float32 next to the true value on the side of zero, on every processor: off by up to one unit, as a library's may be."""
    exact = np.tanh(x.astype(np.float64))
    nearest = exact.astype(np.float32)
    return np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, np.float32(0)), nearest)


def gelu_forward(x):
    return 0.5 * x * (1 + tanh(C * (x + CUBIC * x * x * x)))


def gelu_slope(x):
    t = tanh(C * (x + CUBIC * x * x * x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * C * (1 + 3 * CUBIC * x * x)


class Graph:
    """Recorded work: values and addresses as they were, memory as it is at each launch.

    It keeps the arrays alive, as a kernel that wrote to freed memory would take the tests' process with it; on CUDA that is the
    caller's duty.
    """

    def __init__(self, work):
        self.work = work

    def launch(self):
        for do in self.work:
            do()


class HostRuntime:
    """What the backend ``cuda`` asks of a runtime, on the CPU. ``order`` is "forward" or "reversed": which threads run first.

    ``edits`` changes kernel files before they are compiled, for planted mistakes: {"layernorm.cu": [(old, new), ...]}.
    ``separate`` makes every epilogue of a GEMM unfused, by separate kernels.
    """

    xp = np
    bfloat16 = np.dtype(ml_dtypes.bfloat16)

    def __init__(self, order="forward", edits=None, kernels=KERNELS, separate=False):
        assert order in ("forward", "reversed")
        self.reversed, self.separate = order == "reversed", separate
        self.sources = {path.name: path.read_text() for path in sorted(Path(kernels).glob("*.cu*"))}
        for file, changes in (edits or {}).items():
            for old, new in changes:
                assert old in self.sources[file], f"{file} has no {old!r}"
                self.sources[file] = self.sources[file].replace(old, new)
        self.signatures = {file: read_signatures(file, source) for file, source in self.sources.items()}
        self.optimize = "-O0" if edits else "-O2"  # a planted mistake runs once: what takes the time is to compile it
        self.recorded = None  # a list while capturing
        self.pool = None
        self.kernel = functools.cache(self._kernel)

    def empty(self, shape, dtype):
        if self.pool is None:
            return empty(shape, dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return np.asarray(self.pool.take(nbytes))[:nbytes].view(dtype).reshape(shape)

    @staticmethod
    def address(a):
        return a.__array_interface__["data"][0]

    @staticmethod
    def block(nbytes):
        return empty((nbytes,), np.uint8)

    @contextlib.contextmanager
    def allocating(self, pool):
        self.pool = pool
        try:
            yield
        finally:
            self.pool = None

    def _kernel(self, file, name, defines):
        signatures = self.signatures[file]
        library = load(build(self.sources, file, dict(defines), self.optimize))
        return Kernel(library, list(signatures).index(name), signatures[name])

    def launch(self, file, kernel, grid, block, /, *, defines=None, shared=0, flops=0, touches=(), **args):
        names, defines = self.signatures[file], defines or {}
        assert kernel in names, f"{file} has the kernels {[*names]}, not {kernel!r}"
        values = names[kernel].arguments(args, defines)
        kernel = self.kernel(file, kernel, tuple(sorted(defines.items())))
        packed = kernel.pack(values)
        pointers = (ctypes.c_void_p * len(packed))(*(value.ctypes.data for value in packed))
        size = (ctypes.c_uint * 6)(*three(grid), *three(block))
        arrays = [*args.items(), *(("touched", array) for array in touches)]
        owners = [(f"{name}, {a.dtype} {a.shape}", owner_of(a)) for name, a in arrays if isinstance(a, np.ndarray)]

        def do(kept=packed):  # the pointers point into it
            error = kernel.run(size, ctypes.c_uint(shared), self.reversed, pointers)
            if error is not None:
                raise KernelError(f"{kernel.name}: {error.decode()}")
            check_guards(kernel.name, owners)

        self._do(do)

    def gemm(self, a, b, out, *, compute="float32", bias=None, pre_gelu=None, dgelu_input=None, bias_grad=None, unfused=None):
        """The GEMM, with the epilogues of cuBLASLt, and what that would refuse."""
        if unfused is not None and self.separate:
            unfused()
            return
        extras = [x is not None for x in (bias, pre_gelu, dgelu_input, bias_grad)]
        for fine, what in [
            (is_matrix(a) and is_matrix(b) and a.dtype == b.dtype, "operands"),
            (out.flags.c_contiguous and out.dtype in (np.dtype(np.float32), a.dtype), "output"),
            (a.shape[1:] == b.shape[:1] and out.shape == a.shape[:1] + b.shape[1:], "shapes"),
            (not np.may_share_memory(out, a) and not np.may_share_memory(out, b), "output in the place of an operand"),
            (sum(extras) <= 1 or extras == [True, True, False, False], "epilogues"),
        ]:
            assert fine, f"cuBLASLt refuses: {what}"
        for vector in bias, bias_grad:
            assert vector is None or vector.shape == out.shape[1:]
        for aux in pre_gelu, dgelu_input:
            assert aux is None or (aux.shape == out.shape and aux.flags.c_contiguous)

        a, b, out, bias, pre_gelu, dgelu_input, bias_grad = map(unpooled, (a, b, out, bias, pre_gelu, dgelu_input, bias_grad))

        @np.errstate(all="ignore")  # as a GPU
        def do():
            x, y = a.astype(np.float32), b.astype(np.float32)
            result = matmul(x, y)
            if bias is not None:
                result += bias.astype(np.float32)
            if pre_gelu is not None:
                pre_gelu[...] = result
                result = gelu_forward(result)
            if dgelu_input is not None:
                result *= gelu_slope(dgelu_input.astype(np.float32))
            if bias_grad is not None:
                bias_grad[...] = matmul(np.ones((1, len(y)), np.float32), y)[0]
            out[...] = result

        self._do(do)

    def _do(self, do):
        if self.recorded is None:
            do()
        else:
            self.recorded.append(do)

    def capture(self, work):
        assert self.recorded is None, "a capture within a capture"
        self.recorded = []
        try:
            work()
            return Graph(self.recorded)
        finally:
            self.recorded = None

    def synchronize(self):
        assert self.recorded is None, "CUDA cannot wait while it captures"

    def read(self, array):
        self.synchronize()
        return array.copy()


def three(size):
    """A grid or block as three numbers."""
    size = size if isinstance(size, tuple) else (size,)
    return size + (1,) * (3 - len(size))


@functools.cache
def stacks(size):
    """Memory for the stacks of a machine's threads, aligned to pages. All libraries share it: there is one machine."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000))


@functools.cache
def load(path):
    """The library; it keeps the interpreter's lock: one launch at a time."""
    library = ctypes.PyDLL(path)
    library.use_stacks(ctypes.byref(ctypes.c_char.from_buffer(stacks(library.stack_bytes()))))
    return library
