"""Sums over the rows of a matrix, always in the same order: kernels/reduce.cu.

A sum over many rows is the sum of partial sums. Within a training step, the partial sums of all layernorms wait until pack_grads
needs the gradients; then one launch finishes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tensorlite.arrays import Array
from tensorlite.integers import ceil_div

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

FILE = "reduce.cu"
BLOCK_COLS = 32  # of reduce.cu: columns of threads in a block
BLOCK = 1024  # threads per block
LARGEST_GAP = 256  # bytes between two parameters in a flat buffer: less than this, and zero (gpt/params.py)
ROWS_EACH = 256  # rows that are worth a block of their own
FILL = 512  # blocks that fill any GPU
SUMS = 64  # of reduce.cu: the most sums per launch of finish_sums
PARTIAL_SUMS = np.dtype([("partial", "u8", SUMS), ("out", "u8", SUMS), ("rows", "i8", SUMS), ("K", "i8", SUMS)])  # of reduce.cu


def sum_rows(ops: "CUDAOps", x: Array, out: Array | None = None) -> Array:
    """x: (rows, K) -> out: (K,) in float32, a new array unless it is given.

    The rows are split into parts, so that the whole GPU has work; the sums of the parts are then summed the same way.
    """
    rows, K = x.shape
    out = ops.float32(K) if out is None else out
    cols_per_thread = 4 if K % 4 == 0 else 1
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
        K=K,
        defines={"scalar_t": ops.c_scalar(x), "VEC": cols_per_thread},
    )
    return out if parts == 1 else sum_rows(ops, partial, out)


class PartialSum(NamedTuple):
    """A sum to be finished: out: (K,) receives the sum of partial: (rows, K) over its rows. Both are float32."""

    partial: Array
    out: Array


class PackedSquares(NamedTuple):
    """What the last pack_grads has written, and its sums of squares."""

    slots: Sequence[Array]
    partial: Array  # their sum is that over all slots


@dataclass
class StepSums:
    """The sums of one training step.

    pending: those that pack_grads finishes.
    summed, column_sums: an array that a kernel has summed over its rows while writing it, and these sums. Within a step only ops
        use arrays, and no op writes into one that another has returned, so the sums stay those of the array.
    squares: those of the gradients, from the last pack_grads until their norm is computed. Clipping, which follows, changes them.
    """

    pending: list[PartialSum] = field(default_factory=list)
    summed: Array | None = None
    column_sums: Array | None = None
    squares: PackedSquares | None = None


def sum_later(ops: "CUDAOps", partial: Array) -> Array:
    """Return the sum of partial: (rows, K) over its rows, for K a multiple of 4.

    Within a step it is not there before `finish_sums`; outside a step it is launched at once.
    """
    out = ops.float32(partial.shape[1])
    later = PartialSum(partial, out)
    if ops.step_sums is None:
        _launch_sums(ops, [later])
    else:
        ops.step_sums.pending.append(later)
    return out


def finish_sums(ops: "CUDAOps") -> None:
    """Launch all pending sums of the step, SUMS of them per launch."""
    if ops.step_sums is None:
        return
    pending = ops.step_sums.pending
    for i in range(0, len(pending), SUMS):
        _launch_sums(ops, pending[i : i + SUMS])
    pending.clear()


def _launch_sums(ops: "CUDAOps", sums: list[PartialSum]) -> None:
    """Launch finish_sums for at most SUMS sums."""
    table = np.zeros((), PARTIAL_SUMS)
    for i, (partial, out) in enumerate(sums):
        table["partial"][i] = ops.address(partial)
        table["out"][i] = ops.address(out)
        table["rows"][i], table["K"][i] = partial.shape
    col_blocks = ceil_div(int(table["K"].max()), 4 * BLOCK_COLS)
    arrays = [array for later in sums for array in later]
    defines = {"scalar_t": "float", "VEC": 4}
    ops.launch(FILE, "finish_sums", (col_blocks, len(sums)), BLOCK, sums=table, touches=arrays, defines=defines)


def known_sums(ops: "CUDAOps", x: Array) -> Array | None:
    """Return the sums of x over its rows if the kernel that wrote x within this step has computed them, else None."""
    known = ops.step_sums
    return known.column_sums if known is not None and known.summed is x else None


def known_squares(ops: "CUDAOps", buffer: Array) -> Array | None:
    """Return, once, the partial sums of squares of a flat buffer that the last pack_grads of this step has filled, else None."""
    step = ops.step_sums
    if step is None or step.squares is None or not _fill(ops, step.squares.slots, buffer):
        return None
    partial = step.squares.partial
    step.squares = None
    return partial


def _fill(ops: "CUDAOps", slots: Sequence[Array], buffer: Array) -> bool:
    """Whether the slots are all of a flat buffer, apart from the gaps between them."""
    end = ops.address(buffer)
    for slot in sorted(slots, key=ops.address):
        gap = ops.address(slot) - end
        if not 0 <= gap < LARGEST_GAP:
            return False
        end = ops.address(slot) + slot.nbytes
    gap = ops.address(buffer) + buffer.nbytes - end
    return 0 <= gap < LARGEST_GAP
