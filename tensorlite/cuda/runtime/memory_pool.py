"""class GraphMemoryPool: a private memory pool for one captured step.

A graph replays fixed addresses, so its temporaries must never be handed to other code, as CuPy's default pool would do after the
capture. The blocks of this pool stay reserved as long as the graph. Within the step, a block is reused once the last array on it is
garbage-collected, as in tensorlite/cpu/memory_pool.py. This is safe because kernels run in the order of their launches: the first
kernel of the new array runs after the last kernel of the old one.
"""

from collections.abc import Callable
from typing import Any

from tensorlite.integers import round_up

ROUND = 512  # bytes: sizes are rounded up to a multiple of this, so that arrays of nearly equal size share blocks


class PooledBlock:
    """One block while it is in use. An array on `block` must keep this object alive, as its owner."""

    __slots__ = ("_free", "block")

    def __init__(self, block: Any, free: list) -> None:
        self.block, self._free = block, free

    def __del__(self) -> None:
        self._free.append(self.block)

    @property
    def __array_interface__(self) -> dict:
        """For NumPy: np.asarray(pooled_block) is an array that keeps this object alive."""
        return self.block.__array_interface__


class GraphMemoryPool:
    """Free blocks by size. allocate: returns a new block of the given number of bytes."""

    def __init__(self, allocate: Callable[[int], Any]) -> None:
        self._allocate = allocate
        self._free: dict[int, list] = {}
        self.nbytes = 0  # of all blocks

    def take(self, nbytes: int) -> PooledBlock:
        """Return a block of at least nbytes: the one that was freed last, or a new one."""
        size = round_up(max(1, nbytes), ROUND)
        free = self._free.setdefault(size, [])
        if not free:
            self.nbytes += size
            free.append(self._allocate(size))
        return PooledBlock(free.pop(), free)
