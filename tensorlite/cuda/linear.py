"""The linear layer by cuBLASLt. It replaces tensorlite/reference/linear.py; the derivation is there.

What differs: the bias is added, and its gradient summed, by the product that has the numbers at hand; and weights of an odd width
(a vocabulary of 65) get columns of zeros up to a multiple of 64, which the tensor cores need.
"""

from typing import Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.elementwise import BLOCK, blocks, contiguous
from tensorlite.reference.linear import check_linear

WIDTH = 8  # columns: a row of so many bf16 numbers is 16 bytes, what the fast products ask of every row
PADDED = 64  # columns of the tensor cores' tiles


def linear_forward(ops: Any, x: Array, w: Array, b: Array | None = None) -> tuple[Array, tuple]:
    """y = x w + b. The cache refers to x and w in the precision computed in."""
    array_namespace(x, w, b)
    check_linear(x, w, b)
    C, D = w.shape
    x, w, b = ops.operand(x), ops.matrix(w), ops.vector(b)
    wide = padded_width(D)
    y = ops.empty((x.size // C, wide))
    ops.gemm(x.reshape(-1, C), columns(ops, w, wide), y, bias=None if b is None else columns(ops, b, wide))
    return columns(ops, y, D).reshape(*x.shape[:-1], D), (x, w, b is not None)


def linear_backward(ops: Any, dy: Array, cache: tuple) -> tuple[Array, Array, Array | None]:
    """dx = dy w^T,  dw = x^T dy,  db = sum of dy over rows: the last two in float32, in one product."""
    x, w, has_bias = cache
    array_namespace(dy, x)
    D = w.shape[1]
    wide = padded_width(D)
    dy = ops.gradient(dy, (*x.shape[:-1], D), "linear").reshape(-1, D)
    dx, dw, db = padded_backward(ops, columns(ops, dy, wide), x, columns(ops, w, wide), has_bias)
    return dx, columns(ops, dw, D), None if db is None else db[:D]


def padded_backward(ops: Any, dy: Array, x: Array, w: Array, has_bias: bool) -> tuple[Array, Array, Array | None]:
    """linear_backward of dy: (N, wide) and w: (C, wide)."""
    C, wide = w.shape
    dx, dw = ops.empty(x.shape), ops.float32(C, wide)
    db = ops.float32(wide) if has_bias else None
    ops.gemm(dy, w.T, dx.reshape(-1, C))  # (N, wide) @ (wide, C)
    ops.gemm(x.reshape(-1, C).T, dy, dw, bias_grad=db)  # (C, N) @ (N, wide)
    return dx, dw, db


def padded_width(D: int) -> int:
    """D, or more where rows of D bf16 numbers are not whole pieces of 16 bytes."""
    return D if D % WIDTH == 0 else -(-D // PADDED) * PADDED


def columns(ops: Any, x: Array, width: int) -> Array:
    """x: (..., D) with zeros added, or columns taken away, up to a width: itself where nothing changes."""
    D = x.shape[-1]
    if width == D:
        return x
    x = contiguous(ops, x)
    y = ops.runtime.empty((*x.shape[:-1], width), x.dtype)
    ops.launch(
        "embedding.cu", "resize_rows", blocks(y.size, BLOCK), BLOCK, x, D, y, width, 0, y.size // width, REAL=ops.real(x), ID="int"
    )
    return y
