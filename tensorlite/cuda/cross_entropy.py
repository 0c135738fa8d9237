"""Softmax cross-entropy, by kernels/cross_entropy.cu.

The kernel file says what differs; the derivation is in tensorlite/reference/cross_entropy.py.
"""

from typing import Any

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.layout import c_integer
from tensorlite.integers import ceil_div
from tensorlite.reference.cross_entropy import check_cross_entropy
from tensorlite.reference.indices import check_indices

FILE = "cross_entropy.cu"
WARPS = 8  # of cross_entropy.cu: rows of a block at a time
BLOCKS, BACKWARD_BLOCKS = 512, 2048  # at most


def cross_entropy_forward(ops: Any, logits: Array, targets: Array) -> tuple[Array, tuple]:
    """loss = mean of lse - logits at the target, a float32. The cache refers to both, and holds lse, one float32 per row."""
    xp = array_namespace(logits, targets)
    check_cross_entropy(logits.shape, targets)
    if ops.check:
        check_indices(targets, logits.shape[-1], "cross_entropy: targets")
    if logits.dtype != np.float32:
        logits = ops.operand(logits)
    loss, lse = mean_loss(ops, xp.ascontiguousarray(logits).reshape(-1, logits.shape[-1]), logits.shape[-1], targets)
    return loss, (logits, targets, lse)


def cross_entropy_backward(ops: Any, dloss: Array | float, cache: tuple) -> Array:
    """dlogits = dloss (p - onehot) / N"""
    logits, targets, lse = cache
    array_namespace(logits)
    V = logits.shape[-1]
    rows = array_namespace(logits).ascontiguousarray(logits).reshape(-1, V)
    return gradient(ops, dloss, rows, V, targets, lse, logits.dtype).reshape(logits.shape)


def mean_loss(ops: Any, logits: Array, V: int, targets: Array) -> tuple[Array, Array]:
    """The loss, and lse, of logits: (N, stride), V of each row in use."""
    N, stride = logits.shape
    grid = min(BLOCKS, ceil_div(N, WARPS))
    lse, partial, loss = ops.float32(N), ops.float32(grid), ops.float32()
    types = {"scalar_t": ops.c_scalar(), "logit_t": ops.c_scalar(logits), "index_t": c_integer(targets, "cross_entropy: targets")}
    args = (logits, stride, V, array_namespace(targets).ascontiguousarray(targets), lse, partial, N)
    ops.launch(FILE, "cross_entropy_forward", grid, 32 * WARPS, *args, **types)
    ops.launch(FILE, "mean_loss", 1, 256, partial, grid, N, loss, **types)
    return loss, lse


def gradient(ops: Any, dloss: Array | float, logits: Array, V: int, targets: Array, lse: Array, dtype: Any) -> Array:
    """dlogits: (N, stride) of a dtype; the columns beyond V are zero."""
    N, stride = logits.shape
    dlogits = ops.runtime.empty(logits.shape, dtype)
    value, dloss_ptr = (1.0, dloss) if isinstance(dloss, ops.runtime.xp.ndarray) else (float(dloss), None)
    if dloss_ptr is not None:
        ops.flat(dloss_ptr)
    types = {"scalar_t": ops.c_scalar(dlogits), "logit_t": ops.c_scalar(logits)}
    types["index_t"] = c_integer(targets, "cross_entropy: targets")
    args = (value, dloss_ptr, logits, stride, V, array_namespace(targets).ascontiguousarray(targets), lse, dlogits, N)
    ops.launch(FILE, "cross_entropy_backward", min(BACKWARD_BLOCKS, ceil_div(N, WARPS)), 32 * WARPS, *args, **types)
    return dlogits
