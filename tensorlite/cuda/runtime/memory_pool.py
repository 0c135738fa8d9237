"""class GraphMemoryPool: the memory of one captured step, which no other code uses.

A graph has addresses in it. Were its temporaries taken from CuPy's pool, the pool would hand them out again as soon as the capture
is over, and the next replay would write over whatever is there then. So they come from here: blocks that stay reserved as long as
the graph. Within the step a block is used again once the last array on it has gone, as tensorlite/cpu/memory_pool.py does it:
kernels run in the order of their launches, so a new owner's kernel comes after the last one of the old.
"""

from collections.abc import Callable
from typing import Any

from tensorlite.integers import round_up

ROUND = 512  # bytes: sizes are rounded up to a multiple, so that arrays of nearly one size share blocks


class PooledBlock:
    """One block while it is in use. An array made on `block` must keep this object alive, as its owner."""

    __slots__ = ("_free", "block")

    def __init__(self, block: Any, free: list) -> None:
        self.block, self._free = block, free

    def __del__(self) -> None:
        self._free.append(self.block)

    @property
    def __array_interface__(self) -> dict:
        """For a NumPy block: np.asarray(pooled_block) is an array that keeps this object alive."""
        return self.block.__array_interface__


class GraphMemoryPool:
    """Free blocks by size. allocate: makes a block of the given number of bytes."""

    def __init__(self, allocate: Callable[[int], Any]) -> None:
        self._allocate = allocate
        self._free: dict[int, list] = {}
        self.nbytes = 0  # of all blocks

    def take(self, nbytes: int) -> PooledBlock:
        """A block of at least so many bytes: one that was given back, the last first, or a new one."""
        size = round_up(max(1, nbytes), ROUND)
        free = self._free.setdefault(size, [])
        if not free:
            self.nbytes += size
            free.append(self._allocate(size))
        return PooledBlock(free.pop(), free)
