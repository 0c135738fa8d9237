"""The op table of the CPU backend: the reference's, but for the rows of the ops that keep something else for backward.

`ShapeOps(ROWS)` counts its caches. FLOPs are the reference's, the work that was asked for, so that rates can be compared.
"""

from dataclasses import replace

from tensorlite import optable
from tensorlite.optable import Op

_REFERENCE = optable.ROWS

ROWS: dict[str, Op] = _REFERENCE | {
    # xhat and rstd, where the reference keeps x, mean and rstd: in a model x is kept by nobody else, so it is xhat in its place
    "layernorm": replace(
        _REFERENCE["layernorm"], keeps=("w",), saves=lambda a: [(a.x.shape, "float"), ((*a.x.shape[:-1], 1), "float")]
    ),
    "gelu": replace(_REFERENCE["gelu"], saves=lambda a: [(a.x.shape, "float")]),  # the gate, which the reference computes again
    "attention": replace(_REFERENCE["attention"], keeps=("qkv", "y")),  # y is the next linear layer's x, which that keeps anyway
}
