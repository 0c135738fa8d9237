"""The op table of the CUDA backend: the reference's, but for the rows of the ops that keep something else for backward.

`ShapeOps(ROWS)` counts its caches. Sizes are in the activations' item size, except that statistics are float32 in any precision.
"""

from dataclasses import replace

from tensorlite import optable
from tensorlite.optable import Op

_REFERENCE = optable.ROWS

ROWS: dict[str, Op] = _REFERENCE | {
    # the mask is drawn again: nothing is kept of a dropout
    "dropout": replace(_REFERENCE["dropout"], saves=lambda _: []),
    "residual": replace(_REFERENCE["residual"], saves=lambda _: []),
    # the log-sum-exp of each row instead of the probabilities; y is the next linear layer's x, which that keeps anyway
    "attention": replace(
        _REFERENCE["attention"],
        keeps=("qkv", "y"),
        saves=lambda a: [((a.qkv.shape[0], a.n_head, a.qkv.shape[1]), "float")],
    ),
}
