"""The op table of the CUDA backend, where dropout and attention save other arrays.

`MetaOps(OP_INFO)` computes the sizes of its caches. Activations are counted in their own item size, statistics as float32.
"""

from dataclasses import replace

from tensorlite import op_info
from tensorlite.op_info import OpInfo

_REFERENCE = op_info.OP_INFO

OP_INFO: dict[str, OpInfo] = _REFERENCE | {
    # backward draws the mask again, so dropout saves nothing
    "dropout": replace(_REFERENCE["dropout"], saved_new=lambda _: []),
    "residual": replace(_REFERENCE["residual"], saved_new=lambda _: []),
    # lse, one float per row, instead of the probabilities; y is the next linear layer's x, which that layer saves anyway
    "attention": replace(
        _REFERENCE["attention"],
        saved_refs=("qkv", "y"),
        saved_new=lambda a: [((a.qkv.shape[0], a.n_head, a.qkv.shape[1]), "float")],
    ),
}
