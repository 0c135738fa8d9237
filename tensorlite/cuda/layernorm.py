"""Layer normalisation with the residual connections around it, by kernels/layernorm.cu. The kernel file says what differs."""

from typing import Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.reduce import sum_rows
from tensorlite.integers import ceil_div, round_up
from tensorlite.random import Key
from tensorlite.reference.dropout import check_residual
from tensorlite.reference.layernorm import check_layernorm

FILE, WARPS = "layernorm.cu", 4
ROW_BLOCKS = 1024  # blocks of forward at most
PARTIAL_BLOCKS = 660  # of backward, five on each of an H200's 132 SMs: each leaves a partial sum of dw and of db


def layernorm_forward(ops: Any, x: Array, w: Array, b: Array | None = None, eps: float = 1e-5) -> tuple[Array, tuple]:
    """y = xhat w + b. The cache refers to x and w, and holds mean and rstd, two float32 per row."""
    array_namespace(x, w, b)
    check_layernorm(x, w, b)
    x = ops.operand(x)
    h, cache = _forward(ops, x, None, ops.dropout_params((), 0.0, None), None, w, b, eps)
    return h, cache


def layernorm_backward(ops: Any, dy: Array, cache: tuple) -> tuple[Array, Array, Array | None]:
    """dx = rstd (g - mean(g) - xhat mean(g xhat)),  dw = sum of dy xhat,  db = sum of dy."""
    array_namespace(dy, cache[0])
    dx, _, dw, db = _backward(ops, dy, cache, None, None)
    return dx, dw, db


def prenorm_layernorm_backward(ops: Any, dout: tuple[Array, Array], cache: tuple) -> tuple[Array, Array, Array | None]:
    """dx = dx + layernorm_backward(dh): the sum in the same pass."""
    skip, dh = dout
    array_namespace(skip, dh)
    dx, _, dw, db = _backward(ops, dh, cache, skip, None)
    return dx, dw, db


def dropout_add_layernorm_forward(
    ops: Any, x: Array, y: Array, w: Array, b: Array | None, p: float = 0.0, key: Key | None = None
) -> tuple[tuple[Array, Array], tuple]:
    """s = x + dropout(y),  h = layernorm(s). The cache is layernorm's, and dropout's struct."""
    array_namespace(x, y, w, b)
    check_residual(x, y)
    check_layernorm(x, w, b)
    dropout, s = ops.dropout_params(x.shape, p, key), ops.empty(x.shape)
    h, norm = _forward(ops, ops.operand(x), ops.operand(y), dropout, s, w, b, 1e-5)
    return (s, h), (dropout, norm)


def dropout_add_layernorm_backward(ops: Any, dout: tuple[Array, Array], cache: tuple) -> tuple[Array, Array, Array, Array | None]:
    """dx = ds + layernorm_backward(dh),  dy = dropout_backward(dx)."""
    ds, dh = dout
    array_namespace(ds, dh)
    dropout, norm = cache
    return _backward(ops, dh, norm, ds, dropout)


def _forward(
    ops: Any, x: Array, y: Array | None, dropout: Any, s: Array | None, w: Array, b: Array | None, eps: float
) -> tuple[Array, tuple]:
    C = x.shape[-1]
    rows = x.size // C
    w, h, mean, rstd = ops.operand(w), ops.empty(x.shape), ops.float32(rows), ops.float32(rows)
    if rows:
        grid = min(ROW_BLOCKS, ceil_div(rows, WARPS))
        args = (x, y, dropout, s, w, ops.vector(b), float(eps), h, mean, rstd, rows)
        ops.launch(FILE, "layernorm_forward", grid, 32 * WARPS, *args, scalar_t=ops.c_scalar(), C=C)
    return h, (x if s is None else s, w, b is not None, mean, rstd)


def _backward(ops: Any, dh: Array, cache: tuple, skip: Array | None, dropout: Any) -> tuple[Array, Array, Array, Array | None]:
    """dx, the gradient of what was added before the norm (of nothing: dx again), dw, db."""
    x, w, has_bias, mean, rstd = cache
    C = x.shape[-1]
    rows, grid = x.size // C, max(1, min(PARTIAL_BLOCKS, ceil_div(x.size // C, WARPS)))
    dh, dx = ops.gradient(dh, x.shape, "layernorm"), ops.empty(x.shape)
    skip = None if skip is None else ops.gradient(skip, x.shape, "layernorm")
    dbranch = ops.empty(x.shape) if dropout is not None and dropout["threshold"] else None  # without dropout it is dx
    partial = ops.float32(grid, 2 * round_up(C, 4))
    dropout = ops.dropout_params((), 0.0, None) if dropout is None else dropout
    args = (dh, x, w, mean, rstd, skip, dx, dropout, dbranch, partial, rows)
    ops.launch(FILE, "layernorm_backward", grid, 32 * WARPS, *args, scalar_t=ops.c_scalar(), C=C)
    dw, db = sum_rows(ops, partial).reshape(2, -1)[:, :C]
    return dx, dx if dbranch is None else dbranch, dw, db if has_bias else None
