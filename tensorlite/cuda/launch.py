"""The number of blocks of a launch, and the launch of elementwise kernels."""

from typing import TYPE_CHECKING, Any

from tensorlite.arrays import Array
from tensorlite.integers import ceil_div

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

BLOCK = 256  # threads per block
LARGE_BLOCK = 1024  # threads of a kernel of one block, which waits for memory the less often the more threads it has
GRID = 2048  # the most blocks: enough to fill any GPU; each thread then loops over several chunks


def blocks(n: int, per_block: int = 4 * BLOCK) -> int:
    """Return how many blocks share n elements, if a block processes per_block of them at a time."""
    return max(1, min(GRID, ceil_div(n, per_block)))


def launch_elementwise(ops: "CUDAOps", file: str, kernel: str, over: Array, /, **args: Any) -> None:
    """Launch a kernel over all elements of an array, whose dtype is the kernel's scalar_t.

    over: the array, which is also among the arguments. args: as for `launch`, apart from n, the number of elements.
    """
    if over.size:
        ops.launch(file, kernel, blocks(over.size), BLOCK, n=over.size, defines={"scalar_t": ops.c_scalar(over)}, **args)
