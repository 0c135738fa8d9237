"""Dropout, alone and with the residual connection, by kernels/dropout.cu.

The derivation is in tensorlite/reference/dropout.py.
"""

from typing import TYPE_CHECKING, Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import launch_elementwise
from tensorlite.random import Key
from tensorlite.reference.dropout import check_residual

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

FILE = "dropout.cu"


def dropout_forward(ops: "CUDAOps", x: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, Any]:
    """y = x mask inv_keep. The cache is the struct from which backward draws the mask again; it has no bytes on the device."""
    array_namespace(x)
    dropout = ops.dropout_params(x.shape, p, key)
    return dropout_backward(ops, x, dropout), dropout


def dropout_backward(ops: "CUDAOps", dy: Array, cache: Any) -> Array:
    """dx = dy mask inv_keep: dropout is linear, so backward is the same map."""
    array_namespace(dy)
    if not cache["threshold"]:
        return dy
    dy = ops.operand(dy)
    dx = ops.empty(dy.shape)
    launch_elementwise(ops, FILE, "residual", dx, x=None, y=dy, dropout=cache, out=dx)
    return dx


def residual_forward(ops: "CUDAOps", x: Array, y: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, Any]:
    """out = x + dropout(y). The cache is dropout's."""
    array_namespace(x, y)
    check_residual(x, y)
    x = ops.operand(x)
    y = ops.operand(y)
    dropout = ops.dropout_params(x.shape, p, key)
    out = ops.empty(x.shape)
    launch_elementwise(ops, FILE, "residual", out, x=x, y=y, dropout=dropout, out=out)
    return out, dropout


def residual_backward(ops: "CUDAOps", dout: Array, cache: Any) -> tuple[Array, Array]:
    """dx = dout,  dy = dropout_backward(dout)"""
    return dout, dropout_backward(ops, dout, cache)
