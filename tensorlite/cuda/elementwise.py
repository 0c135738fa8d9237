"""add and accumulate_loss of tensorlite/reference/ops.py, by kernels/elementwise.cu."""

from typing import TYPE_CHECKING

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import launch_elementwise
from tensorlite.cuda.layout import contiguous

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

FILE = "elementwise.cu"


def add(ops: "CUDAOps", a: Array, b: Array) -> Array:
    """Return a + b. Raises ValueError unless both have one shape and one dtype."""
    array_namespace(a, b)
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        ops.c_scalar(a)  # raises TypeError for a dtype that no kernel takes
        ops.c_scalar(b)
        raise ValueError(f"add: {a.shape} {a.dtype} and {b.shape} {b.dtype} differ")
    a = contiguous(ops, a)
    b = contiguous(ops, b)
    out = ops.runtime.empty(a.shape, a.dtype)
    launch_elementwise(ops, FILE, "add", out, a=a, b=b, out=out)
    return out


def accumulate_loss(ops: "CUDAOps", total: Array | None, loss: Array, weight: float) -> Array:
    """Return total + weight loss, or weight loss where total is None."""
    if total is None and weight == 1.0:
        return loss
    out = ops.float32()
    ops.launch(FILE, "accumulate_loss", 1, 1, total=total, loss=loss, weight=weight, out=out, defines={"scalar_t": "float"})
    return out
