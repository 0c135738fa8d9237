"""Layer normalisation with the residual connections around it, by kernels/layernorm.cu.

The kernel file says what differs; the derivation is in tensorlite/reference/layernorm.py.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.reduce import sum_later
from tensorlite.cuda.runtime.device_key import NO_DROPOUT
from tensorlite.integers import ceil_div, round_up
from tensorlite.random import Key
from tensorlite.reference.dropout import check_residual
from tensorlite.reference.layernorm import check_layernorm

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

FILE = "layernorm.cu"
WARPS = 8  # of layernorm.cu: rows that a block processes at a time
ROW_BLOCKS = 512  # the most blocks of forward
PARTIAL_BLOCKS = 264  # the most blocks of backward, two per SM of an H200; each leaves three partial sums


def layernorm_forward(ops: "CUDAOps", x: Array, w: Array, b: Array | None = None, eps: float = 1e-5) -> tuple[Array, tuple]:
    """y = xhat w + b. The cache refers to x and w, and holds mean and rstd, two float32 per row."""
    array_namespace(x, w, b)
    check_layernorm(x, w, b)
    return _forward(ops, ops.operand(x), y=None, dropout=NO_DROPOUT, s=None, w=w, b=b, eps=eps)


def layernorm_backward(ops: "CUDAOps", dy: Array, cache: tuple) -> tuple[Array, Array, Array | None]:
    """dx = rstd (g - mean(g) - xhat mean(g xhat)),  dw = sum of dy xhat,  db = sum of dy."""
    array_namespace(dy, cache[0])
    grads = _backward(ops, dy, cache, skip=None, dropout=NO_DROPOUT)
    return grads.dx, grads.dw, grads.db


def dropout_add_layernorm_forward(
    ops: "CUDAOps", x: Array, y: Array | None, w: Array, b: Array | None, p: float = 0.0, key: Key | None = None
) -> tuple[tuple[Array, Array], tuple]:
    """s = x + dropout(y),  h = layernorm(s). The cache holds dropout's struct and layernorm's cache."""
    array_namespace(x, y, w, b)
    dropout, s = NO_DROPOUT, None
    if y is not None:
        check_residual(x, y)
        y = ops.operand(y)
        dropout = ops.dropout_params(x.shape, p, key)
        s = ops.empty(x.shape)
    check_layernorm(x, w, b)
    h, norm_cache = _forward(ops, ops.operand(x), y=y, dropout=dropout, s=s, w=w, b=b, eps=1e-5)
    return (norm_cache.x, h), (y is not None, dropout, norm_cache)


def dropout_add_layernorm_backward(
    ops: "CUDAOps", dout: tuple[Array | None, Array], cache: tuple
) -> tuple[Array, Array | None, Array, Array | None]:
    """dx = ds + layernorm_backward(dh),  dy = dropout_backward(dx), where dout = (ds, dh).

    The sum of dy over rows is the gradient of the bias that y ends with. Within a step it is handed on to linear_backward.
    """
    ds, dh = dout
    array_namespace(ds, dh)
    has_branch, dropout, norm_cache = cache
    grads = _backward(ops, dh, norm_cache, skip=ds, dropout=dropout)
    if not has_branch:
        return grads.dx, None, grads.dw, grads.db
    if ops.step_sums is not None:
        ops.step_sums.summed = grads.dbranch
        ops.step_sums.column_sums = grads.branch_sum
    return grads.dx, grads.dbranch, grads.dw, grads.db


class LayernormCache(NamedTuple):
    """What backward reads of forward."""

    x: Array  # what was normalised
    w: Array
    has_bias: bool
    mean: Array  # (N,), float32
    rstd: Array  # (N,), float32


def _forward(
    ops: "CUDAOps", x: Array, y: Array | None, dropout: Any, s: Array | None, w: Array, b: Array | None, eps: float
) -> tuple[Array, LayernormCache]:
    """Launch layernorm_forward: s = x + dropout(y), h = layernorm(s). Without y, and then without s, x itself is normalised."""
    C = x.shape[-1]
    rows = x.size // C
    w = ops.operand(w)
    h = ops.empty(x.shape)
    mean = ops.float32(rows)
    rstd = ops.float32(rows)
    if rows:
        ops.launch(
            FILE,
            "layernorm_forward",
            min(ROW_BLOCKS, ceil_div(rows, WARPS)),
            32 * WARPS,
            x=x,
            y=y,
            dropout=dropout,
            s=s,
            w=w,
            b=ops.vector(b),
            eps=float(eps),
            h=h,
            mean=mean,
            rstd=rstd,
            rows=rows,
            defines={"scalar_t": ops.c_scalar(), "C": C},
        )
    normalised = x if s is None else s
    return h, LayernormCache(normalised, w, b is not None, mean, rstd)


class LayernormGradients(NamedTuple):
    """What layernorm_backward computes."""

    dx: Array
    dbranch: Array  # of y in s = x + dropout(y); without dropout it is dx itself
    dw: Array
    db: Array | None
    branch_sum: Array  # of dbranch over its rows


def _backward(ops: "CUDAOps", dh: Array, cache: tuple, skip: Array | None, dropout: Any) -> LayernormGradients:
    """Launch layernorm_backward, and sum the blocks' partial sums of dw, db and dbranch.

    skip: the gradient that reaches x past the norm, or None.
    dropout: the struct of the dropout before the norm, or NO_DROPOUT.
    """
    x, w, has_bias, mean, rstd = cache
    C = x.shape[-1]
    rows = x.size // C
    blocks = max(1, min(PARTIAL_BLOCKS, ceil_div(rows, WARPS)))
    dh = ops.gradient(dh, x.shape, "layernorm")
    dx = ops.empty(x.shape)
    if skip is not None:
        skip = ops.gradient(skip, x.shape, "layernorm")
    dbranch = ops.empty(x.shape) if dropout["threshold"] else None
    partial = ops.float32(blocks, 3 * round_up(C, 4))
    ops.launch(
        FILE,
        "layernorm_backward",
        blocks,
        32 * WARPS,
        dh=dh,
        x=x,
        w=w,
        mean=mean,
        rstd=rstd,
        skip=skip,
        dx=dx,
        dropout=dropout,
        dbranch=dbranch,
        partial=partial,
        rows=rows,
        defines={"scalar_t": ops.c_scalar(), "C": C},
    )
    dw, db, branch_sum = sum_later(ops, partial).reshape(3, -1)[:, :C]
    dbranch = dx if dbranch is None else dbranch
    return LayernormGradients(dx=dx, dbranch=dbranch, dw=dw, db=db if has_bias else None, branch_sum=branch_sum)
