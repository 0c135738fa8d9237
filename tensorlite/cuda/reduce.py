"""Sums over the rows of a matrix, always in the same order: kernels/reduce.cu."""

from typing import TYPE_CHECKING

from tensorlite.arrays import Array
from tensorlite.integers import ceil_div

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

FILE = "reduce.cu"
BLOCK_COLS = 32  # of reduce.cu: columns of threads in a block
BLOCK = 1024  # threads per block
VEC_COLS = 4096  # a matrix of at least so many columns gives each thread four of them
ROWS_EACH = 1024  # rows that are worth a block of their own
FILL = 512  # blocks that fill any GPU


def sum_rows(ops: "CUDAOps", x: Array, out: Array | None = None) -> Array:
    """x: (rows, K) -> out: (K,) in float32, a new array unless it is given.

    The rows are split into parts, so that the whole GPU has work; the sums of the parts are then summed the same way.
    """
    rows, K = x.shape
    out = ops.float32(K) if out is None else out
    cols_per_thread = 4 if K % 4 == 0 and K >= VEC_COLS else 1
    col_blocks = ceil_div(K, BLOCK_COLS * cols_per_thread)
    parts = max(1, min(ceil_div(rows, ROWS_EACH), FILL // col_blocks))
    partial = out if parts == 1 else ops.float32(parts, K)
    ops.launch(
        FILE,
        "sum_rows",
        (col_blocks, parts),
        BLOCK,
        x=x,
        partial=partial,
        rows=rows,
        rows_each=ceil_div(rows, parts),
        defines={"scalar_t": ops.c_scalar(x), "K": K},
    )
    return out if parts == 1 else sum_rows(ops, partial, out)
