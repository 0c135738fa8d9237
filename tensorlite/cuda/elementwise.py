"""Sums of two arrays, and of losses, by kernels/elementwise.cu.

They replace add and accumulate_loss of tensorlite/reference/ops.py.
"""

from typing import Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import launch_elementwise
from tensorlite.cuda.layout import contiguous

FILE = "elementwise.cu"


def add(ops: Any, a: Array, b: Array) -> Array:
    """a + b, of one dtype."""
    array_namespace(a, b)
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        ops.c_scalar(a), ops.c_scalar(b)
        raise ValueError(f"add: {a.shape} {a.dtype} and {b.shape} {b.dtype} differ")
    a, b = contiguous(ops, a), contiguous(ops, b)
    out = ops.runtime.empty(a.shape, a.dtype)
    launch_elementwise(ops, FILE, "add", out, a=a, b=b, out=out)
    return out


def accumulate_loss(ops: Any, total: Array | None, loss: Array, weight: float) -> Array:
    """total + weight loss, or weight loss alone."""
    if total is None and weight == 1.0:
        return loss
    out = ops.float32()
    ops.launch(FILE, "accumulate_loss", 1, 1, total=total, loss=loss, weight=weight, out=out, defines={"scalar_t": "float"})
    return out
