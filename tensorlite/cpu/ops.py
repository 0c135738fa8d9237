"""class Ops: what the CPU backend does in its own way; everything else is the reference's."""

import numpy as np

from tensorlite.cpu import attention, dropout, gelu, layernorm, linear, optim
from tensorlite.cpu.memory import Memory
from tensorlite.cpu.table import ROWS
from tensorlite.reference import Reference
from tensorlite.xp import Array, namespace


class Ops(Reference):
    """The functions of `tensorlite.cpu`, on NumPy arrays. It holds memory that it uses again: one object for each thread.

    check: as for Reference.
    """

    name = "fast"
    rows = ROWS

    def __init__(self, *, check: bool = True) -> None:
        super().__init__(check=check)
        self.memory = Memory()

    linear_forward = linear.linear_forward
    linear_backward = linear.linear_backward
    layernorm_forward = layernorm.layernorm_forward
    layernorm_backward = layernorm.layernorm_backward
    gelu_forward = gelu.gelu_forward
    gelu_backward = gelu.gelu_backward
    attention_forward = attention.attention_forward
    attention_backward = attention.attention_backward
    dropout_forward = dropout.dropout_forward
    dropout_backward = dropout.dropout_backward
    residual_forward = dropout.residual_forward
    residual_backward = dropout.residual_backward
    adamw_ = optim.adamw_

    def add(self, a: Array, b: Array) -> Array:  # type: ignore[override]  # static in Reference: the same to a caller
        namespace(a, b)
        return np.add(a, b, out=self.memory.new(a.shape, a, b))
