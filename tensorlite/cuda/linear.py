"""The linear layer by cuBLASLt. It replaces tensorlite/reference/linear.py; the derivation is there.

What differs: the epilogue of the GEMM adds the bias and computes its gradient, unless a kernel before it has computed that. Weights
whose width is not a multiple of 8, such as a vocabulary of 65, are padded with zero columns to a multiple of 64, the tile width of
the tensor cores.
"""

from typing import TYPE_CHECKING

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.layout import pad_columns, padded_width
from tensorlite.cuda.reduce import known_sums
from tensorlite.reference.linear import check_linear

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps


def linear_forward(ops: "CUDAOps", x: Array, w: Array, b: Array | None = None) -> tuple[Array, tuple]:
    """y = x w + b. The cache refers to x and w, in the precision of the backend."""
    array_namespace(x, w, b)
    check_linear(x, w, b)
    C, D = w.shape
    x = ops.operand(x)
    w = ops.matrix(w)
    b = ops.vector(b)
    padded = padded_width(D)
    y = ops.empty((x.size // C, padded))
    bias = None if b is None else pad_columns(ops, b, padded)
    ops.gemm(x.reshape(-1, C), pad_columns(ops, w, padded), y, bias=bias)  # (N, C) @ (C, padded)
    y = pad_columns(ops, y, D).reshape(*x.shape[:-1], D)
    return y, (x, w, b is not None)


def linear_backward(ops: "CUDAOps", dy: Array, cache: tuple) -> tuple[Array, Array, Array | None]:
    """dx = dy w^T,  dw = x^T dy,  db = sum of dy over rows. The gradients of w and b are float32."""
    x, w, has_bias = cache
    array_namespace(dy, x)
    D = w.shape[1]
    padded = padded_width(D)
    known_db = known_sums(ops, dy)
    dy = ops.gradient(dy, (*x.shape[:-1], D), "linear").reshape(-1, D)
    dx, dw, db = padded_backward(ops, pad_columns(ops, dy, padded), x, pad_columns(ops, w, padded), has_bias, known_db)
    dw = pad_columns(ops, dw, D)
    if db is not None:
        db = db[:D]
    return dx, dw, db


def padded_backward(
    ops: "CUDAOps", dy: Array, x: Array, w: Array, has_bias: bool, known_db: Array | None = None
) -> tuple[Array, Array, Array | None]:
    """Compute linear_backward for dy: (N, padded) and w: (C, padded). The gradients are padded, too; known_db need not be."""
    C = w.shape[0]
    dx = ops.empty(x.shape)
    ops.gemm(dy, w.T, dx.reshape(-1, C))  # (N, padded) @ (padded, C)
    dw, db = weight_gradients(ops, x.reshape(-1, C), dy, has_bias, known_db)
    return dx, dw, db


def weight_gradients(
    ops: "CUDAOps", x: Array, dy: Array, has_bias: bool, known_db: Array | None = None
) -> tuple[Array, Array | None]:
    """Return dw = x^T dy and db = sum of dy over rows, for x: (N, C) and dy: (N, D). One GEMM computes both.

    known_db: db, if a kernel before has computed it.
    """
    dw = ops.float32(x.shape[1], dy.shape[1])
    if not has_bias or known_db is not None:
        ops.gemm(x.T, dy, dw)  # (C, N) @ (N, D)
        return dw, known_db if has_bias else None
    db = ops.float32(dy.shape[1])
    ops.gemm(x.T, dy, dw, bias_grad=db)
    return dw, db
