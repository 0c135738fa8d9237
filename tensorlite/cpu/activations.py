"""GELU in place and in tiles: all passes over one tile run while it is in the cache.

It replaces gelu_forward and gelu_backward of tensorlite/reference/activations.py. GELU is written as y = x s with the gate
s = (1 + tanh u) / 2, a logistic function of 2u. Then the derivative needs no tanh: s' = 2 s (1 - s) u'. The gate is saved for
backward, where the reference recomputes it; this costs as many bytes as x.
"""

from typing import TYPE_CHECKING

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.reference.activations import CUBIC, SQRT_2_OVER_PI

if TYPE_CHECKING:
    from tensorlite.cpu.ops import CPUOps

TILE = 1 << 18  # elements: the time is the same from 2^15 to 2^18 [benchmarks/RESULTS.md], and large tiles need fewer calls


def gelu_forward(ops: "CPUOps", x: Array) -> tuple[Array, tuple]:
    """y = x s,  s = (1 + tanh u) / 2,  u = x (a + a c x^2) with a = sqrt(2/pi), c = 0.044715. The cache holds x and s."""
    array_namespace(x)
    gate = ops.memory.empty(x.shape, x)
    y = ops.memory.empty(x.shape, x)
    flat_x, flat_gate, flat_y = x.reshape(-1), gate.reshape(-1), y.reshape(-1)
    for i in range(0, x.size, TILE):
        tile = slice(i, i + TILE)
        x_, s, y_ = flat_x[tile], flat_gate[tile], flat_y[tile]
        np.multiply(x_, x_, out=s)
        s *= SQRT_2_OVER_PI * CUBIC
        s += SQRT_2_OVER_PI
        s *= x_  # u
        np.tanh(s, out=s)
        s *= 0.5
        s += 0.5
        np.multiply(x_, s, out=y_)
    return y, (x, gate)


def gelu_backward(ops: "CPUOps", dy: Array, cache: tuple) -> Array:
    """dx = dy (s + x s') = dy (2 u' (1 - s) s x + s),  u' = a + 3 a c x^2. Where s is 0 or 1, no x is too large for the product."""
    x, gate = cache
    array_namespace(dy, x)
    if dy.shape != x.shape:
        raise ValueError(f"gelu: dy has the shape {dy.shape}, x {x.shape}")
    dx = ops.memory.empty(x.shape, dy, x)
    flat_x, flat_gate, flat_dy, flat_dx = x.reshape(-1), gate.reshape(-1), dy.reshape(-1), dx.reshape(-1)
    rest = ops.memory.scratch((TILE,), gate.dtype)
    for i in range(0, x.size, TILE):
        tile = slice(i, i + TILE)
        x_, s, dy_, d = flat_x[tile], flat_gate[tile], flat_dy[tile], flat_dx[tile]
        np.multiply(x_, x_, out=d)
        d *= 6.0 * SQRT_2_OVER_PI * CUBIC
        d += 2.0 * SQRT_2_OVER_PI  # 2 u'
        d *= np.subtract(1.0, s, out=rest[: len(s)])
        d *= s
        d *= x_
        d += s
        d *= dy_
    return dx
