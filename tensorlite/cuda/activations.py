"""GELU and ReLU, by kernels/activations.cu. They replace tensorlite/reference/activations.py; the derivations are there."""

from typing import Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import launch_elementwise

FILE = "activations.cu"


def gelu_forward(ops: Any, x: Array) -> tuple[Array, Array]:
    """y = x (1 + tanh u) / 2. The cache is x."""
    array_namespace(x)
    x = ops.operand(x)
    y = ops.empty(x.shape)
    launch_elementwise(ops, FILE, "gelu_forward", x, y, over=x)
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
    launch_elementwise(ops, FILE, "relu_forward", x, y, over=x)
    return y, y


def relu_backward(ops: Any, dy: Array, cache: Array) -> Array:
    """dx = dy where y > 0, else 0."""
    array_namespace(dy, cache)
    return _backward(ops, "relu", dy, cache)


def _backward(ops: Any, name: str, dy: Array, saved: Array) -> Array:
    dx = ops.empty(saved.shape)
    launch_elementwise(ops, FILE, f"{name}_backward", ops.gradient(dy, saved.shape, name), saved, dx, over=dx)
    return dx
