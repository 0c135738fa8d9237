"""class CPUOps: the ops that the CPU backend overrides; all others are the reference's."""

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.cpu import activations, attention, dropout, layernorm, linear, optim
from tensorlite.cpu.memory_pool import MemoryPool
from tensorlite.cpu.op_info import OP_INFO
from tensorlite.reference.ops import ReferenceOps


class CPUOps(ReferenceOps):
    """The functions of `tensorlite.cpu`, on NumPy arrays. It has a memory pool, so every thread needs an object of its own.

    check: as for ReferenceOps.
    """

    name = "fast"
    op_table = OP_INFO

    def __init__(self, *, check: bool = True) -> None:
        super().__init__(check=check)
        self.memory = MemoryPool()

    linear_forward = linear.linear_forward
    linear_backward = linear.linear_backward
    layernorm_forward = layernorm.layernorm_forward
    layernorm_backward = layernorm.layernorm_backward
    gelu_forward = activations.gelu_forward
    gelu_backward = activations.gelu_backward
    attention_forward = attention.attention_forward
    attention_backward = attention.attention_backward
    dropout_forward = dropout.dropout_forward
    dropout_backward = dropout.dropout_backward
    residual_forward = dropout.residual_forward
    residual_backward = dropout.residual_backward
    adamw_ = optim.adamw_

    def add(self, a: Array, b: Array) -> Array:  # type: ignore[override]  # static in ReferenceOps: the same to a caller
        array_namespace(a, b)
        return np.add(a, b, out=self.memory.empty(a.shape, a, b))
