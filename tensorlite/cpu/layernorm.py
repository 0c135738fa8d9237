"""Layer normalisation in fewer passes over memory. It replaces tensorlite/reference/layernorm.py; the derivation is there.

Two things differ. xhat is saved instead of x; both have one size, and backward needs only xhat. And every mean over the channels is
a matmul with a vector, for which the BLAS reads memory once. A row of equal values is 0 up to the rounding of its mean, times rstd.
"""

from typing import TYPE_CHECKING

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.reference.layernorm import check_layernorm

if TYPE_CHECKING:
    from tensorlite.cpu.ops import CPUOps


def layernorm_forward(ops: "CPUOps", x: Array, w: Array, b: Array | None = None, eps: float = 1e-5) -> tuple[Array, tuple]:
    """y = xhat w + b,  xhat = (x - mean) rstd. The cache refers to w, and holds the new arrays xhat, as x, and rstd: (N, 1)."""
    array_namespace(x, w, b)
    check_layernorm(x, w, b)
    C = x.shape[-1]
    rows = x.reshape(-1, C)  # (N, C)
    mean = rows @ ops.memory.constant(C, 1.0 / C, x.dtype)  # (N, C) @ (C,) -> (N,)
    xhat = np.subtract(rows, mean[:, None], out=ops.memory.empty(rows.shape, x))  # centered, for now
    var = np.einsum("nc,nc->n", xhat, xhat) * (1.0 / C)  # (N,)
    rstd = (1.0 / np.sqrt(var + eps))[:, None]  # (N, 1)
    xhat *= rstd
    y = np.multiply(xhat, w, out=ops.memory.empty(rows.shape, x, w, b))
    if b is not None:
        y += b
    return y.reshape(x.shape), (xhat.reshape(x.shape), w, b is not None, rstd)


def layernorm_backward(ops: "CPUOps", dy: Array, cache: tuple) -> tuple[Array, Array, Array | None]:
    """dx = rstd (g - mean(g) - xhat mean(g xhat))  with  g = dy w.

    mean(g) = dy w / C and mean(g xhat) = (dy xhat) w / C are matmuls with w, and neither needs g.
    """
    xhat, w, has_bias, rstd = cache
    array_namespace(dy, xhat)
    if dy.shape != xhat.shape:
        raise ValueError(f"layernorm: dy has the shape {dy.shape}, x {xhat.shape}")
    shape, C = dy.shape, xhat.shape[-1]
    dy, xhat = dy.reshape(-1, C), xhat.reshape(-1, C)  # (N, C)
    dy_xhat = np.multiply(dy, xhat, out=ops.memory.empty(dy.shape, dy, xhat))
    dw = ops.memory.column_sums(dy_xhat)  # (N, C) -> (C,)
    db = ops.memory.column_sums(dy) if has_bias else None
    w_mean = w * (1.0 / C)
    g_mean = (dy @ w_mean)[:, None]  # (N, C) @ (C,) -> (N, 1)
    g_xhat_mean = (dy_xhat @ w_mean)[:, None]
    dx = np.multiply(dy, w, out=ops.memory.empty(dy.shape, dy_xhat, w))  # g
    dx -= g_mean
    dx -= np.multiply(xhat, g_xhat_mean, out=dy_xhat)
    dx *= rstd
    return dx.reshape(shape), dw, db
