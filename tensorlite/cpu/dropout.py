"""Dropout and the residual connection in place: a mask is multiplied with, where the reference chooses element by element.

They replace tensorlite/reference/dropout.py. A choice between two values is a branch that a processor cannot predict: it
costs ten times a multiplication [benchmarks/RESULTS.md].
"""

from typing import Any

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.random import Key
from tensorlite.reference.dropout import check_residual, draw_mask


def dropout_forward(ops: Any, x: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple | None]:
    """y = x mask / keep. The cache is the reference's: the mask and 1 / keep."""
    array_namespace(x)
    cache = draw_mask(np, x.shape, p, key)
    return dropout_backward(ops, x, cache), cache


def dropout_backward(ops: Any, dy: Array, cache: tuple | None) -> Array:
    """dx = dy mask / keep: dropout is linear, so backward is the same map."""
    if cache is None:
        return dy
    mask, scale = cache
    array_namespace(dy, mask)
    dx = np.multiply(dy, mask, out=ops.memory.new(dy.shape, dy))
    dx *= scale
    return dx


def residual_forward(ops: Any, x: Array, y: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple | None]:
    """out = x + dropout(y)"""
    array_namespace(x, y)
    check_residual(x, y)
    kept, cache = ops.dropout_forward(y, p, key)
    own = cache is not None and kept.dtype == x.dtype  # without a mask, kept is the caller's y
    return np.add(x, kept, out=kept if own else ops.memory.new(x.shape, x, kept)), cache


def residual_backward(ops: Any, dout: Array, cache: tuple | None) -> tuple[Array, Array]:
    """dx = dout,  dy = dropout_backward(dout)"""
    return dout, ops.dropout_backward(dout, cache)
