"""Dropout and the residual connection, in place and by a multiplication with the mask.

They replace tensorlite/reference/dropout.py, which uses np.where. With a random mask, np.where mispredicts its branch and takes ten
times as long as a multiplication [benchmarks/RESULTS.md]. So an infinity that is dropped becomes NaN here, and 0 there.
"""

from typing import TYPE_CHECKING

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.random import Key
from tensorlite.reference.dropout import check_residual, draw_mask

if TYPE_CHECKING:
    from tensorlite.cpu.ops import CPUOps


def dropout_forward(ops: "CPUOps", x: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple | None]:
    """y = x mask inv_keep. The cache is the reference's: the mask and inv_keep."""
    array_namespace(x)
    cache = draw_mask(np, x.shape, p, key)
    return dropout_backward(ops, x, cache), cache


def dropout_backward(ops: "CPUOps", dy: Array, cache: tuple | None) -> Array:
    """dx = dy mask inv_keep: dropout is linear, so backward is the same map."""
    if cache is None:
        return dy
    mask, inv_keep = cache
    array_namespace(dy, mask)
    dx = np.multiply(dy, mask, out=ops.memory.empty(dy.shape, dy))
    dx *= inv_keep
    return dx


def residual_forward(ops: "CPUOps", x: Array, y: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple | None]:
    """out = x + dropout(y). The cache is dropout's."""
    array_namespace(x, y)
    check_residual(x, y)
    branch, cache = ops.dropout_forward(y, p, key)
    in_place = cache is not None and branch.dtype == x.dtype  # without a mask, branch is the caller's y
    out = branch if in_place else ops.memory.empty(x.shape, x, branch)
    return np.add(x, branch, out=out), cache


def residual_backward(ops: "CPUOps", dout: Array, cache: tuple | None) -> tuple[Array, Array]:
    """dx = dout,  dy = dropout_backward(dout)"""
    return dout, ops.dropout_backward(dout, cache)
