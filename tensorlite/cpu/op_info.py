"""The op table of the CPU backend, where layernorm, GELU and attention save other arrays.

`MetaOps(OP_INFO)` computes the sizes of its caches. FLOPs are the reference's, so that rates of different backends can be compared.
"""

from dataclasses import replace

from tensorlite import op_info
from tensorlite.op_info import OpInfo

_REFERENCE = op_info.OP_INFO

OP_INFO: dict[str, OpInfo] = _REFERENCE | {
    # xhat and rstd, where the reference saves x, mean and rstd; no other op saves x here, so saving xhat instead costs nothing
    "layernorm": replace(
        _REFERENCE["layernorm"], saved_refs=("w",), saved_new=lambda a: [(a.x.shape, "float"), ((*a.x.shape[:-1], 1), "float")]
    ),
    # also the gate, which the reference recomputes
    "gelu": replace(_REFERENCE["gelu"], saved_new=lambda a: [(a.x.shape, "float")]),
    # y is the next linear layer's x, which that layer saves anyway
    "attention": replace(_REFERENCE["attention"], saved_refs=("qkv", "y")),
}
