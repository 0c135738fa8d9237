"""class DryRunRuntime: a runtime that runs nothing.

It adds up what a step would launch, compute and move, without a GPU, and it lists the launches. Its arrays are NumPy arrays that
are never written or read, so the operating system gives them no memory.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.arrays import Array
from tensorlite.cuda.runtime.cublaslt import ALIGNMENT
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool
from tensorlite.cuda.runtime.signature import kernel_signature


@dataclass
class KernelCost:
    """The sums over all calls of one kernel in a step."""

    calls: int = 0
    flops: float = 0.0
    bytes: float = 0.0  # of its array arguments, each counted once, and of the arrays that it also touches


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, with all that decides which instructions it executes."""

    file: str
    kernel: str
    grid: tuple[int, ...]
    block: int
    shared: int  # bytes of dynamic shared memory per block
    defines: tuple[tuple[str, str | int], ...]
    arguments: tuple[Any, ...]  # addresses as integers (a null pointer is 0), NumPy scalars, and structs
    flops: float
    bytes: float


@dataclass(frozen=True)
class Gemm:
    """One GEMM: out (M, N) = a (M, K) b (K, N), with the epilogues that it was asked for."""

    M: int
    N: int
    K: int
    out_bytes: int
    epilogues: tuple[str, ...]
    bytes: float


class DryRunRuntime:
    """A stand-in for CudaRuntime.

    costs: the cost of each kernel, by (op, kernel).
    launches: the launches and GEMMs in order, each with its key in `costs`.
    op: the name of the running op, which the caller sets.
    """

    xp = np
    bfloat16 = np.dtype(np.int16)  # of the same size, as NumPy has no bfloat16, and a dry run computes nothing

    def __init__(self) -> None:
        self.costs: dict[tuple[str, str], KernelCost] = {}
        self.launches: list[tuple[tuple[str, str], Launch | Gemm]] = []
        self.op = ""
        self.pool: GraphMemoryPool | None = None

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialised array; within `allocating`, from the pool."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self.block(nbytes) if self.pool is None else np.asarray(self.pool.take(nbytes))
        return memory[:nbytes].view(dtype).reshape(shape)

    @staticmethod
    def address(a: Array) -> int:
        return a.__array_interface__["data"][0]

    @staticmethod
    def block(nbytes: int) -> np.ndarray:
        """Return memory for an array or a graph's memory pool, aligned as on a GPU: which GEMM is timed depends on it."""
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        start = -DryRunRuntime.address(memory) % ALIGNMENT
        return memory[start : start + nbytes]

    @contextlib.contextmanager
    def allocating(self, pool: GraphMemoryPool) -> Iterator[None]:
        """A context in which all new arrays come from the pool, whose size is then the memory that a graph would reserve."""
        self.pool = pool
        try:
            yield
        finally:
            self.pool = None

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
        flops: float = 0.0,
        touches: Sequence[Array] = (),
        **args: Any,
    ) -> None:
        """Add up a kernel, whose arguments are checked as `CudaRuntime.launch` checks them."""
        arguments = kernel_signature(file, kernel).arguments(args, defines or {})
        nbytes = self._add(kernel, flops, arguments, touches)
        grid = grid if isinstance(grid, tuple) else (grid,)
        values = tuple(self._value(a) for a in arguments)
        launch = Launch(file, kernel, grid, block, shared, tuple((defines or {}).items()), values, flops, nbytes)
        self.launches.append(((self.op, kernel), launch))

    def _value(self, argument: Any) -> Any:
        """Return an argument as a kernel receives it: an address for an array, 0 for None."""
        if argument is None:
            return 0
        is_struct = isinstance(argument, np.ndarray) and argument.dtype.names
        return self.address(argument) if isinstance(argument, np.ndarray) and not is_struct else argument

    def gemm(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        compute: str,  # noqa: ARG002
        bias: Array | None = None,
        pre_gelu: Array | None = None,
        dgelu_input: Array | None = None,
        bias_grad: Array | None = None,
        unfused: Any = None,  # noqa: ARG002
    ) -> None:
        """Add up a GEMM, whose epilogue is assumed to be fused."""
        M, K = a.shape
        N = b.shape[1]
        flops = 2.0 * M * K * N
        extras = {"bias": bias, "pre_gelu": pre_gelu, "dgelu_input": dgelu_input, "bias_grad": bias_grad}
        label = gemm_label(a, b, extras)
        nbytes = self._add(label, flops, [a, b, out, *extras.values()], ())
        epilogues = tuple(name for name, array in extras.items() if array is not None)
        self.launches.append(((self.op, label), Gemm(M, N, K, out.nbytes, epilogues, nbytes)))

    def _add(self, kernel: str, flops: float, args: Sequence[Any], touches: Sequence[Array]) -> float:
        """Add a call to the costs. Returns the bytes of its arrays."""
        cost = self.costs.setdefault((self.op, kernel), KernelCost())
        cost.calls += 1
        cost.flops += flops
        arrays = [a for a in args if isinstance(a, np.ndarray) and not a.dtype.names]  # a structured one is a struct
        of_each = {self.address(a): a.nbytes for a in arrays}
        nbytes = sum(of_each.values()) + sum(a.nbytes for a in touches)
        cost.bytes += nbytes
        return nbytes


def gemm_label(a: Array, b: Array, extras: Mapping[str, Array | None]) -> str:
    """Return the name of a GEMM in a table of kernels: its shape and its epilogue, as in "gemm M x K x N + gelu + bias".

    extras: the arrays that the epilogue reads or writes, by the names of the runtime's parameters.
    """
    label = f"gemm {a.shape[0]} x {a.shape[1]} x {b.shape[1]}"
    for parameter, name in (("pre_gelu", "gelu"), ("bias", "bias"), ("dgelu_input", "dgelu"), ("bias_grad", "bias_grad")):
        if extras.get(parameter) is not None:
            label += f" + {name}"
    return label
