"""AdamW in place and in tiles.

It replaces adamw_ of tensorlite/reference/optim.py. The update is the same, with the scalar factors moved together:

    params -= lr sqrt(c2)/c1 * m / (sqrt(v) + eps sqrt(c2)),   c1 = 1 - beta1^t,  c2 = 1 - beta2^t
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from tensorlite.arrays import Array, array_namespace

if TYPE_CHECKING:
    from tensorlite.cpu.ops import CPUOps

TILE = 1 << 18  # elements: a smaller tile costs more in calls than it saves in cache misses [benchmarks/RESULTS.md]


def adamw_(
    ops: "CPUOps",
    params: Array,
    grads: Array,
    m: Array,
    v: Array,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    n_decay: int | None = None,
) -> None:
    """Make one AdamW update, in place. The arguments are the reference's."""
    array_namespace(params, grads, m, v)
    c1 = 1.0 - beta1**t
    c2 = 1.0 - beta2**t
    n_decay = len(params) if n_decay is None else n_decay
    params[:n_decay] *= 1.0 - lr * weight_decay
    rest = ops.memory.scratch((TILE,), params.dtype)
    for i in range(0, len(params), TILE):
        tile = slice(i, i + TILE)
        p, g, m_, v_ = params[tile], grads[tile], m[tile], v[tile]
        s = rest[: len(p)]
        m_ *= beta1
        m_ += np.multiply(g, 1.0 - beta1, out=s)
        v_ *= beta2
        np.multiply(g, g, out=s)
        s *= 1.0 - beta2
        v_ += s
        np.sqrt(v_, out=s)
        s += eps * math.sqrt(c2)
        np.divide(m_, s, out=s)
        s *= lr * math.sqrt(c2) / c1
        p -= s
