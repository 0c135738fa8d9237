"""GELU and ReLU, by kernels/activations.cu. The derivations are in tensorlite/reference/activations.py."""

from typing import TYPE_CHECKING

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import launch_elementwise

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

FILE = "activations.cu"


def gelu_forward(ops: "CUDAOps", x: Array) -> tuple[Array, Array]:
    """y = x (1 + tanh u) / 2. The cache is x itself."""
    array_namespace(x)
    x = ops.operand(x)
    y = ops.empty(x.shape)
    launch_elementwise(ops, FILE, "gelu_forward", x, x=x, y=y)
    return y, x


def gelu_backward(ops: "CUDAOps", dy: Array, cache: Array) -> Array:
    """dx = dy (s + x s') with the gate s = (1 + tanh u) / 2."""
    array_namespace(dy, cache)
    dy = ops.gradient(dy, cache.shape, "gelu")
    dx = ops.empty(cache.shape)
    launch_elementwise(ops, FILE, "gelu_backward", dx, dy=dy, x=cache, dx=dx)
    return dx


def relu_forward(ops: "CUDAOps", x: Array) -> tuple[Array, Array]:
    """y = max(x, 0). The cache is y itself."""
    array_namespace(x)
    x = ops.operand(x)
    y = ops.empty(x.shape)
    launch_elementwise(ops, FILE, "relu_forward", x, x=x, y=y)
    return y, y


def relu_backward(ops: "CUDAOps", dy: Array, cache: Array) -> Array:
    """dx = dy where y > 0, else 0."""
    array_namespace(dy, cache)
    dy = ops.gradient(dy, cache.shape, "relu")
    dx = ops.empty(cache.shape)
    launch_elementwise(ops, FILE, "relu_backward", dx, dy=dy, y=cache, dx=dx)
    return dx
