"""The linear layer by cuBLASLt. It replaces tensorlite/reference/linear.py; the derivation is there.

What differs: the epilogue of a GEMM adds the bias and computes its gradient; and weights whose width is not a multiple of 8 (a
vocabulary of 65) are padded with columns of zeros up to a multiple of 64, which the tensor cores need.
"""

from typing import Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.layout import pad_columns, padded_width
from tensorlite.reference.linear import check_linear


def linear_forward(ops: Any, x: Array, w: Array, b: Array | None = None) -> tuple[Array, tuple]:
    """y = x w + b. The cache refers to x and w in the precision computed in."""
    array_namespace(x, w, b)
    check_linear(x, w, b)
    C, D = w.shape
    x, w, b = ops.operand(x), ops.matrix(w), ops.vector(b)
    padded = padded_width(D)
    y = ops.empty((x.size // C, padded))
    ops.gemm(x.reshape(-1, C), pad_columns(ops, w, padded), y, bias=None if b is None else pad_columns(ops, b, padded))
    return pad_columns(ops, y, D).reshape(*x.shape[:-1], D), (x, w, b is not None)


def linear_backward(ops: Any, dy: Array, cache: tuple) -> tuple[Array, Array, Array | None]:
    """dx = dy w^T,  dw = x^T dy,  db = sum of dy over rows: the last two in float32, in one GEMM."""
    x, w, has_bias = cache
    array_namespace(dy, x)
    D = w.shape[1]
    padded = padded_width(D)
    dy = ops.gradient(dy, (*x.shape[:-1], D), "linear").reshape(-1, D)
    dx, dw, db = padded_backward(ops, pad_columns(ops, dy, padded), x, pad_columns(ops, w, padded), has_bias)
    return dx, pad_columns(ops, dw, D), None if db is None else db[:D]


def padded_backward(ops: Any, dy: Array, x: Array, w: Array, has_bias: bool) -> tuple[Array, Array, Array | None]:
    """linear_backward of dy: (N, padded) and w: (C, padded)."""
    C, padded = w.shape
    dx, dw = ops.empty(x.shape), ops.float32(C, padded)
    db = ops.float32(padded) if has_bias else None
    ops.gemm(dy, w.T, dx.reshape(-1, C))  # (N, padded) @ (padded, C)
    ops.gemm(x.reshape(-1, C).T, dy, dw, bias_grad=db)  # (C, N) @ (N, padded)
    return dx, dw, db
