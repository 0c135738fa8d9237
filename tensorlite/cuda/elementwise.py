"""The ops of kernels/elementwise.cu. They replace tensorlite/reference/activations.py and dropout.py; the derivations are there."""

from typing import Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.random import Key
from tensorlite.reference.dropout import check_residual

FILE, BLOCK, GRID = "elementwise.cu", 256, 2048  # blocks at most: enough to fill any GPU, each thread then takes several slices
ALIGNED = 16  # bytes: kernels and products read so many at once
COPIES = 128  # arrays that one launch of `pack_grads` copies: their addresses and sizes fill 3 of the 4 KiB that arguments may have


def blocks(n: int, each: int = 4 * BLOCK) -> int:
    """How many blocks share n elements, of which each takes so many at a time."""
    return max(1, min(GRID, -(-n // each)))


def each(ops: Any, kernel: str, *args: Any, over: Array) -> None:
    """Launch a kernel over the elements of an array, which is among its arguments, and which says what REAL is."""
    if over.size:
        ops.launch(FILE, kernel, blocks(over.size), BLOCK, *args, over.size, REAL=ops.real(over), COPIES=COPIES)


def contiguous(ops: Any, x: Array) -> Array:
    """x, C-contiguous and aligned: itself or a copy. A transposed matrix, as a tied head has, is turned by a kernel."""
    if x.flags.c_contiguous:
        return x if ops.address(x) % ALIGNED == 0 else x.copy()
    if x.ndim != 2 or not x.T.flags.c_contiguous:
        return array_namespace(x).array(x, order="C")
    y = ops.runtime.empty(x.shape, x.dtype)
    ops.launch(FILE, "transpose", blocks(x.size, BLOCK), BLOCK, x.T, y, x.shape[0], x.size, REAL=ops.real(x), COPIES=COPIES)
    return y


def gelu_forward(ops: Any, x: Array) -> tuple[Array, Array]:
    """y = x (1 + tanh u) / 2. The cache is x."""
    array_namespace(x)
    x = ops.operand(x)
    y = ops.empty(x.shape)
    each(ops, "gelu_forward", x, y, over=x)
    return y, x


def gelu_backward(ops: Any, dy: Array, cache: Array) -> Array:
    """dx = dy (s + x s') with the gate s = (1 + tanh u) / 2."""
    array_namespace(dy, cache)
    return _backward(ops, "gelu", dy, cache)


def relu_forward(ops: Any, x: Array) -> tuple[Array, Array]:
    """y = max(x, 0). The cache is y."""
    array_namespace(x)
    x = ops.operand(x)
    y = ops.empty(x.shape)
    each(ops, "relu_forward", x, y, over=x)
    return y, y


def relu_backward(ops: Any, dy: Array, cache: Array) -> Array:
    """dx = dy where y > 0, else 0."""
    array_namespace(dy, cache)
    return _backward(ops, "relu", dy, cache)


def _backward(ops: Any, name: str, dy: Array, kept: Array) -> Array:
    dx = ops.empty(kept.shape)
    each(ops, f"{name}_backward", ops.gradient(dy, kept.shape, name), kept, dx, over=dx)
    return dx


def dropout_forward(ops: Any, x: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, Any]:
    """y = x mask / keep. The cache is the struct that draws the mask again: no bytes on the device."""
    array_namespace(x)
    drop = ops.drop(x.shape, p, key)
    return dropout_backward(ops, x, drop), drop


def dropout_backward(ops: Any, dy: Array, cache: Any) -> Array:
    """dx = dy mask / keep: dropout is linear, so backward is the same map."""
    array_namespace(dy)
    if not cache["threshold"]:
        return dy
    dy = ops.operand(dy)
    dx = ops.empty(dy.shape)
    each(ops, "residual", None, dy, cache, dx, over=dx)
    return dx


def residual_forward(ops: Any, x: Array, y: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, Any]:
    """out = x + dropout(y). The cache is dropout's."""
    array_namespace(x, y)
    check_residual(x, y)
    x, y, drop = ops.operand(x), ops.operand(y), ops.drop(x.shape, p, key)
    out = ops.empty(x.shape)
    each(ops, "residual", x, y, drop, out, over=out)
    return out, drop


def residual_backward(ops: Any, dout: Array, cache: Any) -> tuple[Array, Array]:
    """dx = dout,  dy = dropout_backward(dout)"""
    return dout, dropout_backward(ops, dout, cache)


def add(ops: Any, a: Array, b: Array) -> Array:
    """a + b, of one dtype."""
    array_namespace(a, b)
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        ops.real(a), ops.real(b)
        raise ValueError(f"add: {a.shape} {a.dtype} and {b.shape} {b.dtype} differ")
    a, b = contiguous(ops, a), contiguous(ops, b)
    out = ops.runtime.empty(a.shape, a.dtype)
    each(ops, "add", a, b, out, over=out)
    return out


def accumulate_loss(ops: Any, total: Array | None, loss: Array, share: float) -> Array:
    """total + share loss, or share loss alone."""
    if total is None and share == 1.0:
        return loss
    out = ops.float32()
    ops.launch(FILE, "accumulate_loss", 1, 1, total, loss, share, out, REAL="float", COPIES=COPIES)
    return out
