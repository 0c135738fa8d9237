"""What the ops of the CPU backend save for backward, where it differs from the reference.

`MetaOps(OP_INFO)` counts its caches. FLOPs are the reference's, the work that was asked for, so that rates can be compared.
"""

from dataclasses import replace

from tensorlite import op_info
from tensorlite.op_info import OpInfo

_REFERENCE = op_info.OP_INFO

OP_INFO: dict[str, OpInfo] = _REFERENCE | {
    # xhat and rstd, where the reference saves x, mean and rstd: no other op saves x here, so xhat instead of it costs nothing
    "layernorm": replace(
        _REFERENCE["layernorm"], saved_refs=("w",), saved_new=lambda a: [(a.x.shape, "float"), ((*a.x.shape[:-1], 1), "float")]
    ),
    # the gate, which the reference recomputes
    "gelu": replace(_REFERENCE["gelu"], saved_new=lambda a: [(a.x.shape, "float")]),
    # y is the next linear layer's x, which that layer saves anyway
    "attention": replace(_REFERENCE["attention"], saved_refs=("qkv", "y")),
}
