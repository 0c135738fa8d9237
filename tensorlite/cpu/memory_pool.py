"""A pool that recycles large arrays: the page faults of a fresh allocation cost more than filling it.

The base of each array is a `PooledBlock`. When the last array or view of it is garbage-collected, the block returns to the free
list for its shape, usually still in the cache. So a result may live as long as its owner likes, no array is overwritten while it
is in use, and a training step that repeats its shapes allocates nothing.
"""

from math import prod

import numpy as np

SMALL = 1 << 12  # elements: below this, the system's allocator is faster than a block
MOST_SHAPES = 256  # a training run has some 30; prompts of ever new lengths have ever new shapes
Shape = tuple[int, ...]


class PooledBlock:
    """One block while it is in use. np.asarray makes an array on it, which keeps this object alive as its base.

    block: the memory.
    interface: block.__array_interface__, which is slow to compute.
    free: the list to which the block returns.
    """

    __slots__ = ("__array_interface__", "block", "free")

    def __init__(self, block: np.ndarray, interface: dict, free: "FreeList") -> None:
        self.block = block
        self.__array_interface__ = interface
        self.free = free

    def __del__(self) -> None:
        self.free.append((self.block, self.__array_interface__))


FreeList = list[tuple[np.ndarray, dict]]  # blocks that are not in use, each with its interface


class MemoryPool:
    """Blocks by shape and dtype, scratch memory and constants. A pool serves one thread only."""

    def __init__(self) -> None:
        self._free: dict[tuple[Shape, np.dtype], FreeList] = {}
        self._scratch: dict[tuple[Shape, np.dtype], np.ndarray] = {}
        self._constants: dict[tuple[int, float, np.dtype], np.ndarray] = {}

    def empty(self, shape: Shape, operand: np.ndarray, *others: np.ndarray | None) -> np.ndarray:
        """Return an uninitialised array for a result of these operands, of the dtype to which they promote."""
        dtype = operand.dtype
        for other in others:
            if other is not None and other.dtype is not dtype:
                dtype = np.promote_types(dtype, other.dtype)
        if prod(shape) < SMALL or dtype.kind == "V":  # bfloat16, whose interface does not name it
            return np.empty(shape, dtype)
        free = self._free.get((shape, dtype))
        if free is None:
            if len(self._free) == MOST_SHAPES:  # begin anew; a block in use goes with its own list
                self._free, self._constants = {}, {}
            free = self._free[shape, dtype] = []
        if free:
            block, interface = free.pop()
        else:
            block = np.empty(shape, dtype)
            interface = block.__array_interface__
        return np.asarray(PooledBlock(block, interface, free))

    def scratch(self, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """Return the same memory at every call, for values that an op needs only until it returns."""
        key = (shape, dtype)
        if key not in self._scratch:
            self._scratch[key] = np.empty(shape, dtype)
        return self._scratch[key]

    def constant(self, n: int, value: float, dtype: np.dtype) -> np.ndarray:
        """Return a read-only vector of n equal values. A matmul with it sums or averages at the speed of the BLAS."""
        key = (n, value, dtype)
        if key not in self._constants:
            self._constants[key] = np.full(n, value, dtype)
            self._constants[key].flags.writeable = False
        return self._constants[key]

    def column_sums(self, x: np.ndarray) -> np.ndarray:
        """Return the sum of x: (N, D) over its rows: (D,)."""
        return self.constant(len(x), 1.0, x.dtype) @ x
