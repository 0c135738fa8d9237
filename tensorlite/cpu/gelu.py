"""GELU in place and in tiles: all passes over one tile are made while it is in the L2 cache.

It replaces gelu_forward and gelu_backward of tensorlite/activations.py, and keeps tanh for backward, where the reference
computes it again: as many bytes as x.
"""

from typing import Any

import numpy as np

from tensorlite.activations import CUBIC, SQRT_2_OVER_PI
from tensorlite.xp import Array, namespace

TILE = 1 << 17  # elements; smaller tiles cost more in calls than they save in misses [benchmarks/RESULTS.md]


def gelu_forward(ops: Any, x: Array) -> tuple[Array, tuple]:
    """y = x (1 + tanh u) / 2,  u = x (a + a c x^2) with a = sqrt(2/pi), c = 0.044715. The cache holds x and tanh u."""
    namespace(x)
    tanh, y = ops.memory.new(x.shape, x), ops.memory.new(x.shape, x)
    flat_x, flat_tanh, flat_y = x.reshape(-1), tanh.reshape(-1), y.reshape(-1)
    for i in range(0, x.size, TILE):
        tile = slice(i, i + TILE)
        x_, t, y_ = flat_x[tile], flat_tanh[tile], flat_y[tile]
        np.multiply(x_, x_, out=t)
        t *= SQRT_2_OVER_PI * CUBIC
        t += SQRT_2_OVER_PI
        t *= x_  # u
        np.tanh(t, out=t)
        np.add(t, 1.0, out=y_)
        y_ *= x_
        y_ *= 0.5
    return y, (x, tanh)


def gelu_backward(ops: Any, dy: Array, cache: tuple) -> Array:
    """dx = dy ((1 + tanh u) + (1 - tanh^2 u) x u') / 2,  x u' = x (a + 3 a c x^2)."""
    x, tanh = cache
    namespace(dy, x)
    dx = ops.memory.new(x.shape, dy, x)
    flat_x, flat_tanh, flat_dy, flat_dx = x.reshape(-1), tanh.reshape(-1), dy.reshape(-1), dx.reshape(-1)
    rest = ops.memory.scratch((TILE,), tanh.dtype)
    for i in range(0, x.size, TILE):
        tile = slice(i, i + TILE)
        x_, t, dy_, d = flat_x[tile], flat_tanh[tile], flat_dy[tile], flat_dx[tile]
        s = rest[: len(t)]
        np.multiply(x_, x_, out=d)
        d *= 1.5 * SQRT_2_OVER_PI * CUBIC
        d += 0.5 * SQRT_2_OVER_PI
        d *= x_  # x u' / 2
        np.multiply(t, t, out=s)
        np.subtract(1.0, s, out=s)
        d *= s  # (1 - tanh^2 u) x u' / 2
        d += np.multiply(t, 0.5, out=s)
        d += 0.5  # + (1 + tanh u) / 2
        d *= dy_
    return dx
