"""Softmax cross-entropy, by kernels/cross_entropy.cu.

The kernel file says what differs; the derivation is in tensorlite/reference/cross_entropy.py.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import LARGE_BLOCK
from tensorlite.cuda.layout import c_integer
from tensorlite.integers import ceil_div
from tensorlite.reference.cross_entropy import check_cross_entropy
from tensorlite.reference.indices import check_indices

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

FILE = "cross_entropy.cu"
WARPS = 8  # of cross_entropy.cu: rows that a block processes at a time
BLOCKS = 512  # the most blocks of forward
BACKWARD_BLOCKS = 2048  # the most blocks of backward


def cross_entropy_forward(ops: "CUDAOps", logits: Array, targets: Array) -> tuple[Array, tuple]:
    """loss = mean of lse - logits at the target, a float32.

    The cache refers to logits and targets, and holds lse, one float32 per row.
    """
    xp = array_namespace(logits, targets)
    check_cross_entropy(logits.shape, targets)
    if ops.check:
        check_indices(targets, logits.shape[-1], "cross_entropy: targets")
    if logits.dtype != np.float32:
        logits = ops.operand(logits)
    V = logits.shape[-1]
    loss, lse = mean_loss(ops, xp.ascontiguousarray(logits).reshape(-1, V), V, targets)
    return loss, (logits, targets, lse)


def cross_entropy_backward(ops: "CUDAOps", dloss: Array | float, cache: tuple) -> Array:
    """dlogits = dloss (p - onehot) / N"""
    logits, targets, lse = cache
    xp = array_namespace(logits)
    V = logits.shape[-1]
    rows = xp.ascontiguousarray(logits).reshape(-1, V)
    return gradient(ops, dloss, rows, V, targets, lse, logits.dtype).reshape(logits.shape)


def mean_loss(ops: "CUDAOps", logits: Array, V: int, targets: Array) -> tuple[Array, Array]:
    """Return the loss and lse: (N,) of logits: (N, stride), whose rows have V logits and then padding."""
    N, stride = logits.shape
    blocks = min(BLOCKS, ceil_div(N, WARPS))
    lse = ops.float32(N)
    partial = ops.float32(blocks)
    loss = ops.float32()
    defines = {"scalar_t": ops.c_scalar(), "logit_t": ops.c_scalar(logits), "index_t": c_integer(targets, "cross_entropy: targets")}
    ops.launch(
        FILE,
        "cross_entropy_forward",
        blocks,
        32 * WARPS,
        logits=logits,
        stride=stride,
        V=V,
        targets=array_namespace(targets).ascontiguousarray(targets),
        lse=lse,
        partial=partial,
        rows=N,
        defines=defines,
    )
    ops.launch(FILE, "mean_loss", 1, LARGE_BLOCK, partial=partial, count=blocks, rows=N, loss=loss, defines=defines)
    return loss, lse


def gradient(ops: "CUDAOps", dloss: Array | float, logits: Array, V: int, targets: Array, lse: Array, dtype: Any) -> Array:
    """Return dlogits: (N, stride) of a dtype; the columns beyond V are zero.

    dloss: a float, or an array of shape () on the device, which the host does not wait for.
    """
    N, stride = logits.shape
    dlogits = ops.runtime.empty(logits.shape, dtype)
    if isinstance(dloss, ops.runtime.xp.ndarray):
        ops.flat(dloss)
        scale = {"value": 1.0, "dloss_ptr": dloss}
    else:
        scale = {"value": float(dloss), "dloss_ptr": None}
    ops.launch(
        FILE,
        "cross_entropy_backward",
        min(BACKWARD_BLOCKS, ceil_div(N, WARPS)),
        32 * WARPS,
        **scale,
        logits=logits,
        stride=stride,
        V=V,
        targets=array_namespace(targets).ascontiguousarray(targets),
        lse=lse,
        dlogits=dlogits,
        rows=N,
        defines={
            "scalar_t": ops.c_scalar(dlogits),
            "logit_t": ops.c_scalar(logits),
            "index_t": c_integer(targets, "cross_entropy: targets"),
        },
    )
    return dlogits
