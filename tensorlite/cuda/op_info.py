"""The op table of the CUDA backend, where dropout and attention save other arrays.

`MetaOps(OP_INFO)` computes the sizes of its caches. Activations are counted in their own item size, statistics as float32.
"""

from dataclasses import replace

from tensorlite import op_info
from tensorlite.cuda.attention import mask_shape
from tensorlite.op_info import Arguments, OpInfo, Shape
from tensorlite.random import drop_threshold

_REFERENCE = op_info.OP_INFO


def _attention_saves(a: Arguments) -> list[tuple[Shape, str]]:
    """lse, one float per row, instead of the probabilities; with dropout also the mask, one bit per visible score."""
    B, T, _ = a.qkv.shape
    saves: list[tuple[Shape, str]] = [((B, a.n_head, T), "float")]
    if a.key is not None and drop_threshold(a.p):
        saves.append((mask_shape(B, a.n_head, T), "uint32"))
    return saves


OP_INFO: dict[str, OpInfo] = _REFERENCE | {
    # backward draws the mask again, so dropout saves nothing
    "dropout": replace(_REFERENCE["dropout"], saved_new=lambda _: []),
    "residual": replace(_REFERENCE["residual"], saved_new=lambda _: []),
    # y is the next linear layer's x, which that layer saves anyway
    "attention": replace(_REFERENCE["attention"], saved_refs=("qkv", "y"), saved_new=_attention_saves),
}
