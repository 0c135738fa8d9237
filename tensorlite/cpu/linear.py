"""The linear layer, computed into pooled memory. It replaces tensorlite/reference/linear.py; the derivation is there."""

from typing import TYPE_CHECKING

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.reference.linear import check_linear

if TYPE_CHECKING:
    from tensorlite.cpu.ops import CPUOps


def linear_forward(ops: "CPUOps", x: Array, w: Array, b: Array | None = None) -> tuple[Array, tuple]:
    """y = x w + b, as in the reference, but the bias is added in place."""
    array_namespace(x, w, b)
    check_linear(x, w, b)
    C, D = w.shape
    rows = x.reshape(-1, C)  # (N, C)
    y = np.matmul(rows, w, out=ops.memory.empty((len(rows), D), x, w, b))  # (N, C) @ (C, D) -> (N, D)
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], D), (x, w, b is not None)


def linear_backward(ops: "CPUOps", dy: Array, cache: tuple) -> tuple[Array, Array, Array | None]:
    """dx = dy w^T,  dw = x^T dy,  db = 1^T dy, where the sum over rows is a matmul with a vector of ones."""
    x, w, has_bias = cache
    array_namespace(dy, x)
    C, D = w.shape
    empty = ops.memory.empty
    dy = dy.reshape(-1, D)  # (N, D)
    dx = np.matmul(dy, w.T, out=empty((len(dy), C), dy, w)).reshape(x.shape)  # (N, D) @ (D, C) -> (N, C)
    dw = np.matmul(x.reshape(-1, C).T, dy, out=empty((C, D), x, dy))  # (C, N) @ (N, D) -> (C, D)
    db = ops.memory.column_sums(dy) if has_bias else None  # (N, D) -> (D,)
    return dx, dw, db
