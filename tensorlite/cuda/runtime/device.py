"""class CudaRuntime: memory, launches, GEMMs and graphs of a GPU, through CuPy and cuBLASLt.

The ops use a device only through the methods of this class. So the tests can give them another runtime, which runs the same kernel
files on the CPU (tests/support/shim/host.py), and `train.py --dry-run` one that only adds up costs (dry_run.py).
"""

import contextlib
import functools
import gc
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tensorlite.arrays import INSTALL_CUDA, Array, DeviceError, pick_device
from tensorlite.cuda.runtime import nvrtc
from tensorlite.cuda.runtime.autotune import AutotuneCache, first_that_runs
from tensorlite.cuda.runtime.cublaslt import ALIGNMENT, COMPUTE, WORKSPACE_BYTES, Algo, Library, MatmulPlan, MatmulProblem
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool
from tensorlite.cuda.runtime.signature import kernel_signature
from tensorlite.version import __version__

MIN_ARCHITECTURE = {"bf16": 80, "tf32": 80, "fp16": 75, "float32": 60}  # the least compute capability, 80 for 8.0, per precision
AUTO = ("bf16", "fp16", "float32")  # the precisions from which `auto` takes the first that the device supports
SOCS = {53, 62, 72, 87, 88, 101, 110}  # compute capabilities of GPUs that share a chip with the CPU, such as Jetson's
SM75_PATH = "TENSORLITE_SM75_PATH"  # environment variable: if set, a newer device is used as one of compute capability 7.5
SM75_SHARED_MEMORY = 64 << 10  # bytes per block of a device of compute capability 7.5
STATIC_SHARED = 128  # the most bytes of static shared memory, rounded up to the alignment of the dynamic that follows it
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
TIMED_FLOPS = 2**33  # a smaller matmul is over in some 20 microseconds, so its algorithms are not timed
TIMED_CALLS = 10  # calls per candidate and round
SPIN_CLOCKS = 1_000_000  # some 0.5 ms, in which the host queues the calls to be timed: about 50 microseconds for each
UNFUSED = "unfused"  # the name of a plain GEMM with kernels of our own, among the candidates


class CudaRuntime:
    """The current CUDA device.

    precision: what it will compute in, or "auto" for the best that it supports. The attribute of this name is never "auto".
    Raises DeviceError, with the reason and the way out, where there is no device, it is too old for the precision, or a library is
    missing.
    """

    def __init__(self, precision: str = "auto") -> None:
        self.xp = pick_device("cuda").xp
        try:
            import ml_dtypes
        except ImportError as error:
            raise DeviceError(f"no CUDA: {error}, the package that gives NumPy and CuPy bfloat16; {INSTALL_CUDA}") from error
        self.bfloat16 = np.dtype(ml_dtypes.bfloat16)
        self.device = self.xp.cuda.Device().id
        self.architecture = int(self.xp.cuda.Device().compute_capability)
        properties = self.xp.cuda.runtime.getDeviceProperties(self.device)
        self.name = properties["name"].decode()
        self.shared_memory = properties["sharedMemPerBlockOptin"]  # bytes per block
        self.capability = self.architecture  # that of the kernels' path
        self._defines: dict[str, int] = {}  # for all kernel files
        if os.environ.get(SM75_PATH) and self.architecture > 75:
            self._use_sm75_path()
        self.precision = best_precision(self.capability) if precision == "auto" else precision
        check_device(self.name, self.capability, self.precision)
        self.target = target_architecture(self.architecture)
        self._kernels: dict[tuple, Any] = {}
        self._modules: dict[tuple, Any] = {}
        self._plans: dict[tuple, tuple[MatmulPlan, Algo | None]] = {}  # None: unfused is faster
        try:
            self.library = Library()
            self.handle = self.library.create()
        except ImportError as error:
            raise DeviceError(str(error)) from error
        self.workspace = self.xp.cuda.alloc(WORKSPACE_BYTES)
        driver = self.xp.cuda.runtime.driverGetVersion()
        versions = f"cublaslt {self.library.version()} tensorlite {__version__} kernels {nvrtc.fingerprint()}"
        self.autotune_cache = AutotuneCache(f"{self.name} driver {driver} {versions}")
        self._probe()

    def _use_sm75_path(self) -> None:
        """Compile the kernels' path for compute capability 7.5, with its limits, for this newer device."""
        self.name += " on the path of compute capability 7.5"
        self.capability = 75
        self.shared_memory = SM75_SHARED_MEMORY
        self._defines = {"SM75_PATH": 1}

    def _probe(self) -> None:
        """Run a kernel and a matmul. Raises DeviceError if one fails, so that a caller can fall back to another backend."""
        try:
            self.launch("spin.cu", "spin", 1, 1, clocks=0)
            a, b, out = (self.empty((16, 16), np.dtype(np.float32)) for _ in range(3))  # memory for values of any type
            dtype = next(operands for operands, compute in COMPUTE if compute == self.precision)
            problem = MatmulProblem(M=16, N=16, K=16, a_t=False, b_t=False, operands=dtype, out=dtype, compute=self.precision)
            plan = MatmulPlan(self.library, problem)
            self._run(plan, self._algos(plan)[0], a, b, out, ())
            self.synchronize()
        except (DeviceError, MemoryError):
            raise
        except Exception as error:  # CuPy's exceptions have no common class
            raise DeviceError(f"{self.name} cannot run the fast backend ({error}); use --backend reference") from error

    # memory

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialised array, from CuPy's pool or, within `allocating`, from a graph's memory pool."""
        return self.xp.empty(shape, dtype)

    @staticmethod
    def address(a: Array) -> int:
        return a.data.ptr

    def block(self, nbytes: int) -> Any:
        """Return memory for a graph's memory pool. It comes from CuPy's own pool, whatever allocator `allocating` has set."""
        return self.xp.get_default_memory_pool().malloc(nbytes)

    @contextlib.contextmanager
    def allocating(self, pool: GraphMemoryPool) -> Iterator[None]:
        """A context in which all new arrays, CuPy's own temporaries included, take their memory from the pool."""

        def allocate(nbytes: int) -> Any:
            pooled = pool.take(nbytes)
            memory = self.xp.cuda.UnownedMemory(pooled.block.ptr, nbytes, pooled, self.device)  # keeps `pooled`, its owner, alive
            return self.xp.cuda.MemoryPointer(memory, 0)

        with self.xp.cuda.using_allocator(allocate):
            yield

    # launches

    def launch(
        self,
        file: str,
        kernel: str,
        grid: int | tuple[int, ...],
        block: int,
        /,
        *,
        defines: Mapping[str, str | int] | None = None,
        shared: int = 0,
        flops: float = 0.0,  # noqa: ARG002
        touches: Sequence[Array] = (),  # noqa: ARG002
        **args: Any,
    ) -> None:
        """Start a kernel.

        file, kernel: the file in tensorlite/cuda/kernels, and the kernel in it.
        grid, block: how many blocks, in one to three dimensions, and how many threads per block.
        defines: compile-time constants. The file is compiled once for each set of values.
        shared: bytes of dynamic shared memory per block.
        flops: floating-point operations of the launch, for runtimes that count.
        touches: for runtimes that count, arrays that the kernel reaches through a struct, or that it writes as well as reads.
        args: the kernel's arguments by the names of its parameters, see `Signature.arguments`.
        Raises TypeError, before anything is launched, where the arguments do not fit the kernel.
        """
        defines = defines or {}
        arguments = kernel_signature(file, kernel).arguments(args, defines)
        key = (file, kernel, *defines.values())
        function = self._kernels.get(key)
        if function is None:
            function = self._kernels[key] = self._load(file, kernel, defines, shared)
        values = tuple(0 if value is None else value for value in arguments)  # not every CuPy passes None as a null pointer
        function(grid if isinstance(grid, tuple) else (grid,), (block,), values, shared_mem=shared)

    def _load(self, file: str, name: str, defines: Mapping[str, str | int], shared: int) -> Any:
        """Compile a file and return one of its kernels, which may use so many bytes of dynamic shared memory."""
        key = (file, *defines.values())
        if key not in self._modules:
            module = self.xp.cuda.function.Module()
            code = nvrtc.cubin(file, self.target, {**defines, **self._defines})
            try:
                module.load(code)
            except Exception as error:  # CuPy's CUDADriverError
                made_by = "{}.{}".format(*nvrtc.version())
                raise DeviceError(
                    f"the driver cannot load code of CUDA {made_by} ({error}); update the driver, or {INSTALL_CUDA}"
                ) from error
            self._modules[key] = module
        kernel = self._modules[key].get_function(name)
        if shared > self.shared_memory - STATIC_SHARED:
            raise DeviceError(
                f"{name} needs {shared} bytes of shared memory, {self.name} has {self.shared_memory}; use smaller heads (a larger "
                "--n-head) or --backend reference"
            )
        if shared:
            from cupy_backends.cuda.api import driver

            driver.funcSetAttribute(kernel.ptr, MAX_DYNAMIC_SHARED, shared)  # CUDA gives more than 48 KiB only on request
        return kernel

    # GEMMs

    def gemm(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        compute: str,
        bias: Array | None = None,
        pre_gelu: Array | None = None,
        dgelu_input: Array | None = None,
        bias_grad: Array | None = None,
        unfused: Callable[[], None] | None = None,
    ) -> None:
        """Compute out = a b with an epilogue, see gemm.py.

        The first call for each large problem times cuBLASLt's algorithms, and `unfused`. A small one takes the first algorithm of
        cuBLASLt, so that a prompt of a new length costs no time.
        """
        extra = tuple(self.address(array) for array in (bias, pre_gelu, dgelu_input, bias_grad) if array is not None)
        alignment = math.gcd(ALIGNMENT, *map(self.address, (a, b, out)), *extra)
        a_t, b_t = not a.flags.c_contiguous, not b.flags.c_contiguous
        epilogue = epilogue_name(bias, pre_gelu, dgelu_input, bias_grad)
        key = (a.shape, b.shape, a_t, b_t, a.dtype.char, out.dtype.char, compute, epilogue, alignment)
        if key not in self._plans:
            problem = MatmulProblem(
                M=a.shape[0],
                N=b.shape[1],
                K=a.shape[1],
                a_t=a_t,
                b_t=b_t,
                operands=str(a.dtype),
                out=str(out.dtype),
                compute=compute,
                epilogue=epilogue,
                alignment=alignment,
            )
            plan = MatmulPlan(self.library, problem)
            self._plans[key] = plan, self._autotune(plan, a, b, out, extra, unfused)
        plan, algo = self._plans[key]
        if algo is None:
            assert unfused is not None
            unfused()
        else:
            self._run(plan, algo, a, b, out, extra)

    def _run(self, plan: MatmulPlan, algo: Algo, a: Array, b: Array, out: Array, extra: tuple[int, ...]) -> None:
        plan.run(
            self.handle,
            algo,
            self.address(a),
            self.address(b),
            self.address(out),
            extra,
            workspace=self.workspace.ptr,
            workspace_bytes=WORKSPACE_BYTES,
            stream=self.xp.cuda.get_current_stream().ptr,
        )

    def _autotune(
        self, plan: MatmulPlan, a: Array, b: Array, out: Array, extra: tuple[int, ...], unfused: Callable[[], None] | None
    ) -> Algo | None:
        """Return the algorithm that is fastest on this device, or the first if the problem is small. None: `unfused`."""
        algos = {algo.name: algo for algo in self._algos(plan, needed=unfused is None)}
        candidates: dict[str, Callable[[], None]] = {}
        for name, algo in algos.items():
            candidates[name] = functools.partial(self._run, plan, algo, a, b, out, extra)
        if unfused is not None:
            candidates[UNFUSED] = unfused
        if plan.problem.flops < TIMED_FLOPS:
            name = first_that_runs(candidates)
        else:
            name = self.autotune_cache.pick(str(plan.problem), candidates, self.time_call)
        return algos.get(name)

    def _algos(self, plan: MatmulPlan, needed: bool = True) -> list[Algo]:
        """Return cuBLASLt's algorithms for a matmul. Raises DeviceError where there is none and one is needed."""
        algos = plan.candidates(self.handle)
        if needed and not algos:
            raise DeviceError(f"cuBLASLt {self.library.version()} has no way to compute {plan.problem}; use --backend reference")
        return algos

    def time_call(self, work: Callable[[], object]) -> float:
        """Return the average seconds per call over TIMED_CALLS calls in a row.

        A spinning kernel delays the GPU until the host has queued all calls, so the time excludes launch latency.
        """
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        work()
        self.launch("spin.cu", "spin", 1, 1, clocks=SPIN_CLOCKS)
        start.record()
        for _ in range(TIMED_CALLS):
            work()
        end.record()
        end.synchronize()
        return self.xp.cuda.get_elapsed_time(start, end) / 1e3 / TIMED_CALLS

    # graphs

    def capture(self, work: Callable[[], None]) -> Any:
        """Return a graph, with a method launch(), of everything that work launches. Nothing runs during the capture."""
        stream = self.xp.cuda.Stream(non_blocking=True)
        self.synchronize()
        collecting = gc.isenabled()
        gc.disable()  # a collection could free memory of CuPy, which is a call that a capture forbids
        try:
            with stream:
                stream.begin_capture()
                try:
                    work()
                except BaseException:
                    with contextlib.suppress(Exception):  # report the exception of work, not that of the broken capture
                        stream.end_capture()
                    raise
                return stream.end_capture()
        finally:
            if collecting:
                gc.enable()

    def synchronize(self) -> None:
        self.xp.cuda.Device().synchronize()


def best_precision(capability: int) -> str:
    """Return the precision that `auto` means on a device: bf16 from 8.0 on, fp16 on 7.5, and float32 on an older one."""
    return next((precision for precision in AUTO if MIN_ARCHITECTURE[precision] <= capability), AUTO[-1])


def check_device(name: str, capability: int, precision: str) -> None:
    """Raise DeviceError if the kernels of this precision need a newer device. name: of the device, for the message."""
    needed = MIN_ARCHITECTURE[precision]
    if capability < needed:
        supported = capability >= MIN_ARCHITECTURE["float32"]
        instead = f"--precision {best_precision(capability)}" if supported else "--backend reference"
        raise DeviceError(
            f"{name} has compute capability {capability / 10}, and the fast backend in {precision} needs {needed / 10} or later; "
            f"use {instead}"
        )


def target_architecture(architecture: int) -> int:
    """Return the newest architecture that the compiler knows and whose code runs on this one.

    That is one of the same major version, and of the same or an earlier minor version. Code for another SoC is not promised to run.
    """
    known = nvrtc.architectures()
    family = [target for target in known if target // 10 == architecture // 10 and target <= architecture]
    runs = [target for target in family if target == architecture or target not in SOCS]
    if not runs:
        version = "{}.{}".format(*nvrtc.version())
        way_out = INSTALL_CUDA if architecture > min(known) else 'that of CUDA 12 has one: pip install -e ".[cuda12x]"'
        raise DeviceError(f"the compiler of CUDA {version} has no code for compute capability {architecture / 10}; {way_out}")
    return max(runs)


def epilogue_name(bias: Array | None, pre_gelu: Array | None, dgelu_input: Array | None, bias_grad: Array | None) -> str:
    """Return the name in cublaslt.EPILOGUES of the epilogue that uses these arrays."""
    if pre_gelu is not None:
        return "gelu" if bias is None else "gelu_bias"
    named = {"bias": bias, "dgelu": dgelu_input, "bias_grad": bias_grad}
    return next((name for name, array in named.items() if array is not None), "none")
