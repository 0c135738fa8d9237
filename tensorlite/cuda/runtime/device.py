"""class CudaRuntime: memory, launches, GEMMs and graphs of a GPU, through CuPy and cuBLASLt.

The ops know no more of a device than this class's methods. So the tests give them another runtime, which runs the same kernel files
on the CPU (tests/support/shim/host.py), and `train.py --dry-run` one that only adds up costs (dry_run.py).
"""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tensorlite.arrays import INSTALL_CUDA, Array, DeviceError, pick_device
from tensorlite.cuda.runtime import nvrtc
from tensorlite.cuda.runtime.autotune import AutotuneCache
from tensorlite.cuda.runtime.cublaslt import WORKSPACE_BYTES, Algo, Library, MatmulPlan, MatmulProblem
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool
from tensorlite.cuda.runtime.signature import kernel_signature
from tensorlite.version import __version__

MIN_ARCHITECTURE = 80  # compute capability 8.0: bf16 on tensor cores, asynchronous copies
STATIC_SHARED = 64  # bytes, at most, of shared memory that a kernel declares besides what it asks for: the key of a dropout
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
TIMED_CALLS = 10  # calls per candidate and round
SPIN_CLOCKS = 3_000_000  # more than a millisecond, in which the host queues the calls to be timed
UNFUSED = "unfused"


class CudaRuntime:
    """The current CUDA device.

    Raises DeviceError, with the reason and the way out, where there is none, it is too old, or a library is missing.
    """

    def __init__(self) -> None:
        self.xp = pick_device("cuda").xp
        try:
            import ml_dtypes
        except ImportError as error:
            raise DeviceError(f"no CUDA: {error}, which NumPy's and CuPy's bfloat16 is; {INSTALL_CUDA}") from error
        self.bfloat16 = np.dtype(ml_dtypes.bfloat16)
        self.device = self.xp.cuda.Device().id
        self.architecture = int(self.xp.cuda.Device().compute_capability)
        properties = self.xp.cuda.runtime.getDeviceProperties(self.device)
        self.name, self.shared_memory = properties["name"].decode(), properties["sharedMemPerBlockOptin"]
        check_device(self.name, self.architecture)
        self._kernels: dict[tuple, Any] = {}
        self._modules: dict[tuple, Any] = {}
        self._plans: dict[tuple, tuple[MatmulPlan, Algo | None]] = {}
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

    def _probe(self) -> None:
        """Run a kernel and a matmul. Raises DeviceError if one fails, so that a caller that has another backend can take that."""
        try:
            self.launch("spin.cu", "spin", 1, 1, clocks=0)
            a, b, out = (self.empty((16, 16), self.bfloat16) for _ in range(3))
            plan = MatmulPlan(self.library, MatmulProblem(16, 16, 16, False, False, "bfloat16", "bfloat16", "bf16"))
            self._run(plan, self._algos(plan)[0], a, b, out, ())
            self.synchronize()
        except (DeviceError, MemoryError):
            raise
        except Exception as error:  # CuPy's errors have no common class
            raise DeviceError(f"{self.name} cannot run the fast backend ({error}); use --backend reference") from error

    # memory

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array: of CuPy's pool or, within `allocating`, of a graph's memory pool."""
        return self.xp.empty(shape, dtype)

    @staticmethod
    def address(a: Array) -> int:
        return a.data.ptr

    def block(self, nbytes: int) -> Any:
        """Memory for a graph's memory pool: of CuPy's own pool, whatever allocator `allocating` has set."""
        return self.xp.get_default_memory_pool().malloc(nbytes)

    @contextlib.contextmanager
    def allocating(self, pool: GraphMemoryPool) -> Iterator[None]:
        """All arrays made in this block, CuPy's own temporaries included, take their memory from the pool."""

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
        function(grid if isinstance(grid, tuple) else (grid,), (block,), tuple(arguments), shared_mem=shared)

    def _load(self, file: str, name: str, defines: Mapping[str, str | int], shared: int) -> Any:
        key = (file, *defines.values())
        if key not in self._modules:
            module = self.xp.cuda.function.Module()
            code = nvrtc.cubin(file, target_architecture(self.architecture), defines)
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

            driver.funcSetAttribute(kernel.ptr, MAX_DYNAMIC_SHARED, shared)  # beyond 48 KiB it has to be asked for
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
        """out = a b with an epilogue, see gemm.py. The first call for each problem times cuBLASLt's algorithms, and `unfused`."""
        extra = tuple(array.data.ptr for array in (bias, pre_gelu, dgelu_input, bias_grad) if array is not None)
        M, K = a.shape
        N = b.shape[1]
        a_t, b_t = not a.flags.c_contiguous, not b.flags.c_contiguous
        key = (M, N, K, a_t, b_t, a.dtype.char, out.dtype.char, compute, epilogue_name(bias, pre_gelu, dgelu_input, bias_grad))
        if key not in self._plans:
            plan = MatmulPlan(self.library, MatmulProblem(M, N, K, a_t, b_t, str(a.dtype), str(out.dtype), compute, key[-1]))
            self._plans[key] = plan, self._autotune(plan, a, b, out, extra, unfused)
        plan, algo = self._plans[key]
        if algo is None:
            assert unfused is not None
            unfused()
        else:
            self._run(plan, algo, a, b, out, extra)

    def _run(self, plan: MatmulPlan, algo: Algo, a: Array, b: Array, out: Array, extra: tuple[int, ...]) -> None:
        memory, stream = self.workspace.ptr, self.xp.cuda.get_current_stream().ptr
        plan.run(self.handle, algo, a.data.ptr, b.data.ptr, out.data.ptr, extra, memory, WORKSPACE_BYTES, stream)

    def _autotune(
        self, plan: MatmulPlan, a: Array, b: Array, out: Array, extra: tuple[int, ...], unfused: Callable[[], None] | None
    ) -> Algo | None:
        """The algorithm that is fastest here, or None for `unfused`."""
        algos = {algo.name: algo for algo in self._algos(plan, needed=unfused is None)}
        candidates: dict[str, Callable[[], None]] = {
            name: functools.partial(self._run, plan, algo, a, b, out, extra) for name, algo in algos.items()
        }
        if unfused is not None:
            candidates[UNFUSED] = unfused
        return algos.get(self.autotune_cache.pick(str(plan.problem), candidates, self.time_call))

    def _algos(self, plan: MatmulPlan, needed: bool = True) -> list[Algo]:
        """cuBLASLt's algorithms for a matmul. Raises DeviceError where there is none and one is needed."""
        algos = plan.candidates(self.handle, alignment=16)
        if needed and not algos:
            raise DeviceError(f"cuBLASLt {self.library.version()} has no way to compute {plan.problem}; use --backend reference")
        return algos

    def time_call(self, work: Callable[[], object]) -> float:
        """Seconds per call, of several in a row. A spinning kernel keeps the GPU busy until the host has queued them all."""
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
        """What work launches, as a graph with a method launch(). Nothing runs meanwhile."""
        stream = self.xp.cuda.Stream(non_blocking=True)
        self.synchronize()
        collecting = gc.isenabled()
        gc.disable()  # a collection could free memory of CuPy's, and that is a call which a capture forbids
        try:
            with stream:
                stream.begin_capture()
                try:
                    work()
                except BaseException:
                    with contextlib.suppress(Exception):  # of the capture; what work raised is the reason
                        stream.end_capture()
                    raise
                return stream.end_capture()
        finally:
            if collecting:
                gc.enable()

    def synchronize(self) -> None:
        self.xp.cuda.Device().synchronize()


def check_device(name: str, architecture: int) -> None:
    """Raise DeviceError unless kernels can be compiled for this device and run on it."""
    if architecture < MIN_ARCHITECTURE:
        raise DeviceError(
            f"{name} has compute capability {architecture / 10}, the fast backend needs {MIN_ARCHITECTURE / 10} or later; "
            "use --backend reference"
        )
    target_architecture(architecture)


def target_architecture(architecture: int) -> int:
    """The newest architecture the compiler knows whose code runs here: the same major version, at most this minor one."""
    known = [a for a in nvrtc.architectures() if a // 10 == architecture // 10 and a <= architecture]
    if not known:
        version = "{}.{}".format(*nvrtc.version())
        raise DeviceError(f"CUDA {version} has no compiler for compute capability {architecture / 10}; {INSTALL_CUDA}")
    return max(known)


def epilogue_name(bias: Array | None, pre_gelu: Array | None, dgelu_input: Array | None, bias_grad: Array | None) -> str:
    """The name in cublaslt.EPILOGUES of what these arrays ask for."""
    if pre_gelu is not None:
        return "gelu" if bias is None else "gelu_bias"
    named = {"bias": bias, "dgelu": dgelu_input, "bias_grad": bias_grad}
    return next((name for name, array in named.items() if array is not None), "none")
