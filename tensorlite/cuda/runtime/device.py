"""class CudaRuntime: what the ops ask of a GPU - memory, launches, products, graphs - through CuPy and cuBLASLt.

The ops know no more of a device than this class's methods. So the tests give them another runtime, which runs the same kernel files
on the CPU (tests/support/shim/host.py), and `train.py --dry-run` one that counts (counting.py).
"""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tensorlite.arrays import INSTALL_CUDA, Array, DeviceError, pick_device
from tensorlite.cuda.runtime import nvrtc
from tensorlite.cuda.runtime.autotune import AutotuneCache
from tensorlite.cuda.runtime.cublaslt import WORKSPACE_BYTES, Algo, Library, MatmulPlan, MatmulProblem
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool
from tensorlite.version import __version__

OLDEST = 80  # compute capability 8.0: bf16 on tensor cores, copies that do not wait
STATIC_SHARED = 64  # bytes, at most, that a kernel has besides the shared memory it asks for: the key of a dropout
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
TIMED_CALLS = 10  # of a candidate in each round
SPIN = 3_000_000  # clocks, more than a millisecond: in which the host queues them
UNFUSED = "separate kernels"


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
        self._products: dict[tuple, tuple[MatmulPlan, Algo | None]] = {}
        try:
            self.library = Library()
            self.handle = self.library.create()
        except ImportError as error:
            raise DeviceError(str(error)) from error
        self.workspace = self.xp.cuda.alloc(WORKSPACE_BYTES)
        driver = self.xp.cuda.runtime.driverGetVersion()
        versions = f"cublaslt {self.library.version()} tensorlite {__version__} kernels {nvrtc.fingerprint()}"
        self.choices = AutotuneCache(f"{self.name} driver {driver} {versions}")
        self._probe()

    def _probe(self) -> None:
        """Run a kernel and a matmul. Raises DeviceError if one fails, so that a caller that has another backend can take that."""
        try:
            self.launch("spin.cu", "spin", 1, 1, 0)
            a, b, out = (self.empty((16, 16), self.bfloat16) for _ in range(3))
            plan = MatmulPlan(self.library, MatmulProblem(16, 16, 16, False, False, "bfloat16", "bfloat16", "bf16"))
            self._run(plan, self._candidates(plan)[0], a, b, out, ())
            self.synchronize()
        except (DeviceError, MemoryError):
            raise
        except Exception as error:  # CuPy's errors have no common class
            raise DeviceError(f"{self.name} cannot run the fast backend ({error}); use --backend reference") from error

    # memory

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array: of CuPy's pool, or of an arena within `allocating`."""
        return self.xp.empty(shape, dtype)

    @staticmethod
    def address(a: Array) -> int:
        return a.data.ptr

    def block(self, nbytes: int) -> Any:
        """Memory for an arena: of CuPy's pool, whatever `allocating` makes of CuPy's allocator."""
        return self.xp.get_default_memory_pool().malloc(nbytes)

    @contextlib.contextmanager
    def allocating(self, arena: GraphMemoryPool) -> Iterator[None]:
        """All arrays made in this block, CuPy's own temporaries included, are the arena's."""

        def allocate(nbytes: int) -> Any:
            lease = arena.take(nbytes)
            memory = self.xp.cuda.UnownedMemory(lease.block.ptr, nbytes, lease, self.device)  # which keeps the lease, its owner
            return self.xp.cuda.MemoryPointer(memory, 0)

        with self.xp.cuda.using_allocator(allocate):
            yield

    # launches

    def launch(
        self,
        file: str,
        name: str,
        grid: int | tuple[int, ...],
        block: int,
        *args: Any,
        shared: int = 0,
        flops: float = 0.0,  # noqa: ARG002
        touches: Sequence[Array] = (),  # noqa: ARG002
        **defines: Any,
    ) -> None:
        """Start a kernel of a file that is compiled with some words defined.

        args: arrays become pointers, None a null pointer, int long long, float float, bool bool, a 0-d structured array a struct.
        shared: bytes of dynamic shared memory. For runtimes that count, flops: what the kernel computes; touches: arrays that it
        reaches through a struct, or that it writes as well as reads.
        """
        key = (file, name, *defines.values())
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = self._load(file, name, defines, shared)
        kernel((grid,) if isinstance(grid, int) else grid, (block,), tuple(map(_argument, args)), shared_mem=shared)

    def _load(self, file: str, name: str, defines: dict[str, Any], shared: int) -> Any:
        key = (file, *defines.values())
        if key not in self._modules:
            module = self.xp.cuda.function.Module()
            code = nvrtc.cubin(file, target(self.architecture), defines)
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

    # products

    def gemm(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        compute: str,
        bias: Array | None = None,
        gelu: Array | None = None,
        dgelu: Array | None = None,
        bias_grad: Array | None = None,
        apart: Callable[[], None] | None = None,
    ) -> None:
        """out = a b with an epilogue, see gemm.py. The first call of each kind times cuBLASLt's algorithms, and `apart`."""
        extra = tuple(array.data.ptr for array in (bias, gelu, dgelu, bias_grad) if array is not None)
        (M, K), N, a_t, b_t = a.shape, b.shape[1], not a.flags.c_contiguous, not b.flags.c_contiguous
        key = (M, N, K, a_t, b_t, a.dtype.char, out.dtype.char, compute, _epilogue(bias, gelu, dgelu, bias_grad))
        if key not in self._products:
            plan = MatmulPlan(self.library, MatmulProblem(M, N, K, a_t, b_t, str(a.dtype), str(out.dtype), compute, key[-1]))
            self._products[key] = plan, self._choose(plan, a, b, out, extra, apart)
        plan, algo = self._products[key]
        if algo is None:
            assert apart is not None
            apart()
        else:
            self._run(plan, algo, a, b, out, extra)

    def _run(self, plan: MatmulPlan, algo: Algo, a: Array, b: Array, out: Array, extra: tuple[int, ...]) -> None:
        memory, stream = self.workspace.ptr, self.xp.cuda.get_current_stream().ptr
        plan.run(self.handle, algo, a.data.ptr, b.data.ptr, out.data.ptr, extra, memory, WORKSPACE_BYTES, stream)

    def _choose(
        self, plan: MatmulPlan, a: Array, b: Array, out: Array, extra: tuple[int, ...], apart: Callable[[], None] | None
    ) -> Algo | None:
        """The algorithm that is fastest here, or None for `apart`."""
        algos = {algo.name: algo for algo in self._candidates(plan, needed=apart is None)}
        ways: dict[str, Callable[[], None]] = {
            name: functools.partial(self._run, plan, algo, a, b, out, extra) for name, algo in algos.items()
        }
        if apart is not None:
            ways[UNFUSED] = apart
        return algos.get(self.choices.pick(str(plan.product), ways, self.time))

    def _candidates(self, plan: MatmulPlan, needed: bool = True) -> list[Algo]:
        """cuBLASLt's algorithms for a product. Raises DeviceError where there is none and one is needed."""
        algos = plan.candidates(self.handle, alignment=16)
        if needed and not algos:
            raise DeviceError(f"cuBLASLt {self.library.version()} has no way to compute {plan.product}; use --backend reference")
        return algos

    def time(self, work: Callable[[], object]) -> float:
        """Seconds of a call, of several in a row. The GPU is kept waiting until the host has queued them all."""
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        work()
        self.launch("spin.cu", "spin", 1, 1, SPIN)
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
    if architecture < OLDEST:
        raise DeviceError(
            f"{name} has compute capability {architecture / 10}, the fast backend needs {OLDEST / 10} or later; "
            "use --backend reference"
        )
    target(architecture)


def target(architecture: int) -> int:
    """The newest architecture the compiler knows whose code runs here: the same major version, at most this minor one."""
    known = [a for a in nvrtc.architectures() if a // 10 == architecture // 10 and a <= architecture]
    if not known:
        version = "{}.{}".format(*nvrtc.version())
        raise DeviceError(f"CUDA {version} has no compiler for compute capability {architecture / 10}; {INSTALL_CUDA}")
    return max(known)


def _epilogue(bias: Array | None, gelu: Array | None, dgelu: Array | None, bias_grad: Array | None) -> str:
    if gelu is not None:
        return "gelu" if bias is None else "gelu_bias"
    named = {"bias": bias, "dgelu": dgelu, "bias_grad": bias_grad}
    return next((name for name, array in named.items() if array is not None), "none")


def _argument(arg: Any) -> Any:
    """What CuPy is to be given: it would take a bool for an int and a float for a double."""
    if isinstance(arg, bool):
        return np.bool_(arg)
    return np.float32(arg) if isinstance(arg, float) else arg
