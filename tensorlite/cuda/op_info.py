"""The op table of the CUDA backend, where some ops save something else for backward.

`MetaOps(OP_INFO)` counts its caches. Sizes are in the activations' item size, except that statistics are float32 in any precision.
"""

from dataclasses import replace

from tensorlite import op_info
from tensorlite.op_info import OpInfo

_REFERENCE = op_info.OP_INFO

OP_INFO: dict[str, OpInfo] = _REFERENCE | {
    # the mask is drawn again: dropout saves nothing
    "dropout": replace(_REFERENCE["dropout"], saved_new=lambda _: []),
    "residual": replace(_REFERENCE["residual"], saved_new=lambda _: []),
    # the log-sum-exp of each row instead of the probabilities; y is the next linear layer's x, which that layer saves anyway
    "attention": replace(
        _REFERENCE["attention"],
        saved_refs=("qkv", "y"),
        saved_new=lambda a: [((a.qkv.shape[0], a.n_head, a.qkv.shape[1]), "float")],
    ),
}
