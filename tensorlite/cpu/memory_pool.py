"""Memory that is used again: a large array fresh from the system costs more to map in than to fill.

Python's reference counts are the allocator. An array made here stands on a `Lease`; when the last array and view on it has gone,
the lease hands the block back, still warm in the cache, to whoever next asks for that shape. So a result may live as long as
anyone likes, nothing is overwritten under its holder, and a training step that repeats its shapes allocates nothing.
"""

from math import prod

import numpy as np

SMALL = 1 << 12  # elements below which the system's allocator has memory at hand, sooner than a lease is made
Shape = tuple[int, ...]


class PooledBlock:
    """One block while it is in use. NumPy reads the interface, and keeps the lease alive as the array's base."""

    block: np.ndarray
    free: list[tuple[np.ndarray, dict]]
    __array_interface__: dict
    __slots__ = ("__array_interface__", "block", "free")

    def __del__(self) -> None:
        self.free.append((self.block, self.__array_interface__))


class MemoryPool:
    """Blocks by shape and dtype, scratch and constants. For one thread."""

    def __init__(self) -> None:
        self._free: dict[tuple[Shape, np.dtype], list[tuple[np.ndarray, dict]]] = {}
        self._scratch: dict[tuple[Shape, np.dtype], np.ndarray] = {}
        self._full: dict[tuple[int, float, np.dtype], np.ndarray] = {}

    def new(self, shape: Shape, first: np.ndarray, *others: np.ndarray | None) -> np.ndarray:
        """An uninitialised array for a result of these operands, of the dtype that they promote to."""
        dtype = first.dtype
        for other in others:
            if other is not None and other.dtype is not dtype:
                dtype = np.promote_types(dtype, other.dtype)
        if prod(shape) < SMALL:
            return np.empty(shape, dtype)
        free = self._free.get((shape, dtype))
        if free is None:
            free = self._free[shape, dtype] = []
        if free:
            block, interface = free.pop()
        else:
            block = np.empty(shape, dtype)
            interface = block.__array_interface__
        lease = PooledBlock()
        lease.block, lease.__array_interface__, lease.free = block, interface, free
        return np.asarray(lease)

    def scratch(self, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """The same memory at every call: for what an op needs only until it returns."""
        key = (shape, dtype)
        if key not in self._scratch:
            self._scratch[key] = np.empty(shape, dtype)
        return self._scratch[key]

    def full(self, n: int, value: float, dtype: np.dtype) -> np.ndarray:
        """A vector of n equal numbers, read-only: a product with it sums or averages, at the speed of the BLAS."""
        key = (n, value, dtype)
        if key not in self._full:
            self._full[key] = np.full(n, value, dtype)
            self._full[key].flags.writeable = False
        return self._full[key]

    def column_sums(self, x: np.ndarray) -> np.ndarray:
        """x: (N, D) -> (D,)"""
        return self.full(len(x), 1.0, x.dtype) @ x
