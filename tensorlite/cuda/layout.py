"""The layout and dtype that kernels and GEMMs ask of an array.

Rows are contiguous and whole pieces of 16 bytes; kernels/layout.cu copies an array into such a layout.
"""

from typing import Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import BLOCK, blocks
from tensorlite.integers import round_up

FILE = "layout.cu"
ALIGNED = 16  # bytes: kernels and GEMMs read so many at once
WIDTH = 8  # columns: a row of so many bf16 values is 16 bytes, what the fast GEMMs ask of every row
TILE_COLS = 64  # columns of the tensor cores' tiles
INTEGERS = {
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
}


def c_integer(ids: Array, what: str) -> str:
    """What a kernel calls the dtype of ids. Raises TypeError for what is no integer."""
    if str(ids.dtype) not in INTEGERS:
        raise TypeError(f"{what} must be integers, one of {', '.join(INTEGERS)}, got {ids.dtype}")
    return INTEGERS[str(ids.dtype)]


def contiguous(ops: Any, x: Array) -> Array:
    """x, C-contiguous and aligned: itself or a copy. A transposed matrix, as a tied head has, is transposed by a kernel."""
    if x.flags.c_contiguous:
        return x if ops.address(x) % ALIGNED == 0 else x.copy()
    if x.ndim != 2 or not x.T.flags.c_contiguous:
        return array_namespace(x).array(x, order="C")
    y = ops.runtime.empty(x.shape, x.dtype)
    ops.launch(FILE, "transpose", blocks(x.size, BLOCK), BLOCK, x.T, y, x.shape[0], x.size, scalar_t=ops.c_scalar(x))
    return y


def whole_tiles(D: int) -> int:
    """D, up to a multiple of TILE_COLS."""
    return round_up(D, TILE_COLS)


def padded_width(D: int) -> int:
    """D, or a multiple of TILE_COLS where rows of D bf16 values are not whole pieces of 16 bytes."""
    return D if D % WIDTH == 0 else whole_tiles(D)


def pad_columns(ops: Any, x: Array, width: int) -> Array:
    """x: (..., D) with columns of zeros added, or columns taken away, up to a width: itself where nothing changes."""
    D = x.shape[-1]
    if width == D:
        return x
    x = contiguous(ops, x)
    y = ops.runtime.empty((*x.shape[:-1], width), x.dtype)
    place_columns(ops, x, D, y, width, 0)
    return y


def place_columns(ops: Any, x: Array, D: int, y: Array, width: int, at: int) -> None:
    """The D columns of x into those of y from column `at` on, as far as they fit, and zeros elsewhere."""
    args = (x, D, y, width, at, y.size // width)
    ops.launch(FILE, "pad_columns", blocks(y.size, BLOCK), BLOCK, *args, scalar_t=ops.c_scalar(x))
