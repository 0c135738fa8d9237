"""class DryRunRuntime: a runtime that runs nothing.

It notes what a step would launch, compute and move, without a GPU. Its arrays are NumPy's, never written or read, so the system
gives them no memory.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.arrays import Array
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool


@dataclass
class Row:
    """What one kernel adds up to in a step."""

    calls: int = 0
    flops: float = 0.0
    bytes: float = 0.0  # of the arrays that it is given, each once, and those it touches besides


class DryRunRuntime:
    """As CudaRuntime. `rows` by (op, kernel); `op` is set by whoever knows which op is running."""

    xp = np

    def __init__(self) -> None:
        self.bfloat16 = np.dtype(np.float16)  # of its size: a plan needs no package that knows bfloat16
        self.rows: dict[tuple[str, str], Row] = {}
        self.op = ""
        self.arena: GraphMemoryPool | None = None

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of no memory, of the arena within `allocating`."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self.block(nbytes) if self.arena is None else np.asarray(self.arena.take(nbytes))
        return memory[:nbytes].view(dtype).reshape(shape)

    @staticmethod
    def address(a: Array) -> int:
        return a.__array_interface__["data"][0]

    @staticmethod
    def block(nbytes: int) -> np.ndarray:
        """Memory for an arena."""
        return np.empty(nbytes, np.uint8)

    @contextlib.contextmanager
    def allocating(self, arena: GraphMemoryPool) -> Iterator[None]:
        """All arrays made in this block are the arena's; it tells what a graph's memory is."""
        self.arena = arena
        try:
            yield
        finally:
            self.arena = None

    def launch(
        self,
        file: str,  # noqa: ARG002
        name: str,
        grid: int | tuple[int, ...],  # noqa: ARG002
        block: int,  # noqa: ARG002
        *args: Any,
        shared: int = 0,  # noqa: ARG002
        flops: float = 0.0,
        touches: Sequence[Array] = (),
        **defines: Any,  # noqa: ARG002
    ) -> None:
        """Note a kernel."""
        self._note(name, flops, args, touches)

    def gemm(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        compute: str,  # noqa: ARG002
        bias: Array | None = None,
        gelu: Array | None = None,
        dgelu: Array | None = None,
        bias_grad: Array | None = None,
        apart: Any = None,  # noqa: ARG002
    ) -> None:
        """Note a product, taken to do its epilogue on the way."""
        (M, K), N = a.shape, b.shape[1]
        extra = {"gelu": gelu, "bias": bias, "dgelu": dgelu, "bias_grad": bias_grad}
        with_it = "".join(f" + {name}" for name, array in extra.items() if array is not None)
        self._note(f"product {M} x {K} x {N}{with_it}", 2.0 * M * K * N, [a, b, out, *extra.values()], ())

    def _note(self, kernel: str, flops: float, args: Sequence[Any], touches: Sequence[Array]) -> None:
        row = self.rows.setdefault((self.op, kernel), Row())
        row.calls += 1
        row.flops += flops
        given = {self.address(a): a.nbytes for a in args if isinstance(a, np.ndarray) and not a.dtype.names}
        row.bytes += sum(given.values()) + sum(a.nbytes for a in touches)
