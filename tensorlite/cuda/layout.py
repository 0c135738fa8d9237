"""The layout that kernels and GEMMs require: contiguous rows whose length is a multiple of 16 bytes.

kernels/layout.cu copies an array into such a layout.
"""

from typing import TYPE_CHECKING, Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import BLOCK, blocks
from tensorlite.integers import round_up

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

FILE = "layout.cu"
ALIGNED = 16  # bytes that kernels and GEMMs read at once
WIDTH = 8  # 16-bit values in 16 bytes: the fast GEMMs require rows of a multiple of this
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
    """Return the C++ name of the dtype of ids. Raises TypeError unless it is an integer type. what: the array, for the message."""
    if str(ids.dtype) not in INTEGERS:
        raise TypeError(f"{what} must be integers, one of {', '.join(INTEGERS)}, got {ids.dtype}")
    return INTEGERS[str(ids.dtype)]


def contiguous(ops: "CUDAOps", x: Array) -> Array:
    """Return x, C-contiguous and aligned: itself or a copy. A transposed matrix, such as a tied head's, is copied by a kernel."""
    if x.flags.c_contiguous:
        return x if ops.address(x) % ALIGNED == 0 else x.copy()
    if x.ndim != 2 or not x.T.flags.c_contiguous:
        return array_namespace(x).array(x, order="C")
    y = ops.runtime.empty(x.shape, x.dtype)
    defines = {"scalar_t": ops.c_scalar(x)}
    ops.launch(FILE, "transpose", blocks(x.size, BLOCK), BLOCK, x=x.T, y=y, rows=x.shape[0], n=x.size, defines=defines)
    return y


def whole_tiles(D: int) -> int:
    """Return D rounded up to a multiple of TILE_COLS."""
    return round_up(D, TILE_COLS)


def padded_width(D: int) -> int:
    """Return D if rows of D 16-bit values are a multiple of 16 bytes, else D rounded up to a multiple of TILE_COLS."""
    return D if D % WIDTH == 0 else whole_tiles(D)


def pad_columns(ops: "CUDAOps", x: Array, width: int, dtype: Any = None) -> Array:
    """Return x: (..., D) as (..., width), with columns of zeros added or columns removed at the end; x itself if nothing changes.

    dtype: of the result, that of x or float32.
    """
    dtype = x.dtype if dtype is None else dtype
    if (width, dtype) == (x.shape[-1], x.dtype):
        return x
    x = contiguous(ops, x)
    y = ops.runtime.empty((*x.shape[:-1], width), dtype)
    place_columns(ops, x, y, at=0)
    return y


def place_columns(ops: "CUDAOps", x: Array, y: Array, at: int) -> None:
    """Copy the columns of x: (..., D) to those of y: (..., width) from column `at` on, as far as they fit; zeros elsewhere."""
    width = y.shape[-1]
    ops.launch(
        FILE,
        "pad_columns" if y.dtype == x.dtype else "pad_columns_float32",
        blocks(y.size, BLOCK),
        BLOCK,
        x=x,
        x_width=x.shape[-1],
        y=y,
        y_width=width,
        at=at,
        rows=y.size // width,
        defines={"scalar_t": ops.c_scalar(x)},
    )
