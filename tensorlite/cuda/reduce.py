"""Sums over the rows of a matrix, always in the same order: kernels/reduce.cu."""

from typing import Any

from tensorlite.arrays import Array
from tensorlite.integers import ceil_div

FILE = "reduce.cu"
BLOCK_COLS, BLOCK = 32, 1024  # of reduce.cu: columns, and threads, of a block
VEC_COLS = 4096  # columns from which a thread takes four at a time
ROWS_EACH = 1024  # rows that are worth a block of their own
FILL = 512  # blocks that fill any GPU


def sum_rows(ops: Any, x: Array, out: Array | None = None) -> Array:
    """x: (rows, K) -> out: (K,) in float32. In parts, so that the whole GPU has work, and then over the parts."""
    rows, K = x.shape
    out = ops.float32(K) if out is None else out
    vec = 4 if K % 4 == 0 and K >= VEC_COLS else 1
    across = ceil_div(K, BLOCK_COLS * vec)  # blocks side by side
    parts = max(1, min(ceil_div(rows, ROWS_EACH), FILL // across))
    partial = out if parts == 1 else ops.float32(parts, K)
    ops.launch(FILE, "sum_rows", (across, parts), BLOCK, x, partial, rows, ceil_div(rows, parts), scalar_t=ops.c_scalar(x), K=K)
    return out if parts == 1 else sum_rows(ops, partial, out)
