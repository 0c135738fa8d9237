"""The kernel files on the CPU: a runtime for the CUDA backend with NumPy's arrays and ``cuda_on_cpu.h``'s threads."""

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

from fake_cupy import stack
from paths import ROOT
from tensorlite.cuda.runtime.memory_pool import PooledBlock
from tensorlite.cuda.runtime.signature import read_signatures

SHIM = Path(__file__).with_name("cuda_on_cpu.h")
KERNELS = ROOT / "tensorlite" / "cuda" / "kernels"
COMPILE = [
    *("g++", "-x", "c++", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-w", "-fmax-errors=3"),
    *("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=0"),  # its longjmp reports a jump to another stack as an attack
    "-ffp-contract=off",  # a b + c rounds twice, also on a processor with a fused multiply-add
    *("-fsanitize=alignment,bounds,shift-exponent", "-fno-sanitize-recover=all"),
]
# The kernels are in an unnamed namespace, so that they may have the name of a function of the C library.
# The compile-time defines are here, where they cannot affect the shim and the C library.
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
    """A kernel did what CUDA forbids."""


def require_compiler():
    """Skip the test where there is no g++."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("no Linux with g++: the CUDA kernels are not run on the CPU", allow_module_level=True)


def build(sources, file, defines, flags):
    """Return the path of the shared library of one kernel file, from the cache or compiled. flags: more of the compiler's."""
    used = {name: text for name, text in sources.items() if name == file or name.endswith(".cuh")}
    entries = ", ".join(f"shim::Kernel<{name}>::entry" for name in read_signatures(file, sources[file]))
    lines = "\n".join(f"#define {key} {int(value) if isinstance(value, bool) else value}" for key, value in sorted(defines.items()))
    used["entry.cpp"] = SOURCE.format(file=file, entries=entries, defines=lines)
    used[SHIM.name] = SHIM.read_text()
    key = hashlib.sha256(repr((sorted(used.items()), COMPILE, flags)).encode()).hexdigest()[:24]
    cache = Path(tempfile.gettempdir()) / f"tensorlite-shim-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    library = cache / f"{Path(file).stem}-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            for name, text in used.items():
                Path(folder, name).parent.mkdir(exist_ok=True)
                Path(folder, name).write_text(text)
            # In two steps, because with -fsanitize the linker would add a library that we replace.
            for command in (
                [*COMPILE, *flags, "-include", SHIM.name, "-c", "entry.cpp", "-o", "entry.o"],
                ["g++", "-shared", "entry.o", "-o", "entry.so"],
            ):
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise KernelError(f"{file} does not compile:\n{done.stderr}")
            os.replace(Path(folder, "entry.so"), library)  # atomically: another process sees the whole file or none
    return library


class Kernel:
    """One entry of a compiled file. signature: its parameters in the source."""

    def __init__(self, library, entry, signature):
        self.name = signature.kernel
        self.run = functools.partial(library.launch, entry)
        library.launch.restype = ctypes.c_char_p
        sizes, kinds = (ctypes.c_int * 256)(), ctypes.create_string_buffer(256)
        count = library.parameters(entry, sizes, kinds)
        compiled = zip(sizes[:count], kinds.raw[:count].decode(), strict=True)
        self.parameters = dict(zip(signature.types, compiled, strict=True))

    def pack(self, values):
        """Return the arguments, in order, as bytes, checked against the compiled parameters. CUDA itself would check nothing."""
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
    """Return an argument as CUDA passes it, and its kind: P pointer, i integer, f floating, s struct."""
    if arg is None:
        return np.array(0, np.uintp), "P"
    if isinstance(arg, np.ndarray) and not (arg.ndim == 0 and arg.dtype.names):
        return np.array(arg.__array_interface__["data"][0], np.uintp), "P"
    if isinstance(arg, int):
        arg = np.int64(arg)
    value = np.array(arg)  # a copy: a captured value stays what it was
    return value, {"V": "s", "f": "f"}.get(value.dtype.kind, "i")


GUARDED = 0xA5  # every byte of a guard zone; it is no NaN, because a kernel might read a NaN there and write it back


class Guarded(np.ndarray):
    """The memory of an array of ``empty``, and the places of its guard zones."""


def empty(shape, dtype):
    """Return an array of NaN between two guard zones, aligned as by cudaMalloc."""
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
    """Return the bytes with guard zones that hold an array, its own or those of the pooled block that it is on."""
    while array is not None and not isinstance(array, Guarded):
        array = array.block if isinstance(array, PooledBlock) else getattr(array, "base", None)
    return array


def unpooled(array):
    """Return the same array without its pooled block. A recorded GEMM, like a launch, must not keep memory from reuse."""
    owner = owner_of(array)
    if owner is None:
        return array
    at = HostRuntime.address(array) - HostRuntime.address(owner)
    return np.ndarray(array.shape, array.dtype, owner, at, array.strides)


def check_guards(name, owners):
    """Raise KernelError if a guard zone of an argument's memory has changed."""
    for what, owner in owners:
        if owner is None:
            continue
        for where, zone in owner.zones.items():
            if (owner[zone] != GUARDED).any():
                owner[zone] = GUARDED
                raise KernelError(f"{name} wrote {where} the array {what}")


def is_matrix(x):
    """Return whether a matrix is C-contiguous or the transpose of a C-contiguous one."""
    return x.ndim == 2 and (x.flags.c_contiguous or x.T.flags.c_contiguous)


def matmul(a, b):
    """Return a b in float32, with a fixed order of the terms. A BLAS has an order of its own for each processor and shape."""
    out = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(len(b)):
        out += a[:, k, None] * b[k]
    return out


C, CUBIC = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)


def tanh(x):
    """Return the float32 next to tanh(x) towards zero, on every processor. Like a library's, it is off by up to one unit."""
    exact = np.tanh(x.astype(np.float64))
    nearest = exact.astype(np.float32)
    return np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, np.float32(0)), nearest)


def gelu_forward(x):
    return 0.5 * x * (1 + tanh(C * (x + CUBIC * x * x * x)))


def gelu_slope(x):
    t = tanh(C * (x + CUBIC * x * x * x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * C * (1 + 3 * CUBIC * x * x)


class Graph:
    """Recorded work: values and addresses as at the capture, memory as at each launch.

    It keeps the arrays alive, because a kernel that writes to freed memory would crash the tests. On CUDA the caller must do this.
    """

    def __init__(self, work):
        self.work = work

    def launch(self):
        for do in self.work:
            do()


class Namespace:
    """NumPy, but for a function that takes less in CuPy."""

    stack = staticmethod(stack)

    def __getattr__(self, name):
        return getattr(np, name)


class HostRuntime:
    """A runtime for the CUDA backend on the CPU.

    order: "forward" or "reversed", the order in which threads and blocks run.
    edits: changes of kernel files before they are compiled, for planted mistakes: {"layernorm.cu": [(old, new), ...]}.
    separate: run every epilogue of a GEMM unfused, by separate kernels.
    sm75: take the kernels' path for compute capability 7.5, and its shared memory.
    """

    xp = Namespace()
    bfloat16 = np.dtype(ml_dtypes.bfloat16)

    def __init__(self, order="forward", edits=None, kernels=KERNELS, separate=False, sm75=False):
        assert order in ("forward", "reversed")
        self.reversed, self.separate = order == "reversed", separate
        self.sources = {path.relative_to(kernels).as_posix(): path.read_text() for path in sorted(Path(kernels).rglob("*.cu*"))}
        for file, changes in (edits or {}).items():
            for old, new in changes:
                assert old in self.sources[file], f"{file} has no {old!r}"
                self.sources[file] = self.sources[file].replace(old, new)
        self.signatures = {file: read_signatures(file, source) for file, source in self.sources.items()}
        self.flags = ("-O0" if edits else "-O2",)  # a planted mistake runs once, so its time is that of the compiler
        if sm75:
            self.flags += ("-DSM75_PATH=1",)
        self.shared_memory = (64 if sm75 else 227) << 10  # bytes per block
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
        library = load(build(self.sources, file, dict(defines), self.flags))
        return Kernel(library, list(signatures).index(name), signatures[name])

    def launch(self, file, kernel, grid, block, /, *, defines=None, shared=0, flops=0, touches=(), **args):
        names, defines = self.signatures[file], defines or {}
        assert kernel in names, f"{file} has the kernels {[*names]}, not {kernel!r}"
        values = names[kernel].arguments(args, defines)
        kernel = self.kernel(file, kernel, tuple(sorted(defines.items())))
        if shared > self.shared_memory:
            raise KernelError(f"{kernel.name}: more shared memory than a block can have")
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
        """Compute a GEMM with the epilogues of cuBLASLt, and refuse what cuBLASLt would refuse."""
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

        @np.errstate(all="ignore")  # a GPU raises no floating-point errors
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
    """Return a grid or block in three dimensions."""
    size = size if isinstance(size, tuple) else (size,)
    return size + (1,) * (3 - len(size))


@functools.cache
def stacks(size):
    """Return memory for the stacks of all threads, aligned to pages. All libraries share it, because one launch runs at a time."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000))


@functools.cache
def load(path):
    """Load a library. Its calls keep the interpreter's lock, so one launch runs at a time."""
    library = ctypes.PyDLL(path)
    library.use_stacks(ctypes.byref(ctypes.c_char.from_buffer(stacks(library.stack_bytes()))))
    return library
