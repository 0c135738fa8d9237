"""Results of the CPU backend and of the reference on the same inputs, with reused memory."""

import numpy as np

from cases import CASES
from tensorlite import ReferenceOps, cpu

OPS, REFERENCE = cpu.CPUOps(), ReferenceOps()


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def as_tuple(grads):
    return grads if isinstance(grads, tuple) else (grads,)


def assert_same(found, expected, tolerance=1e-12):
    """Equal to 1e-12 of the largest entry, or of 1 where all are smaller."""
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0.0))))


def poison(ops):
    """Fill the memory that nobody holds with NaN. It reveals code that reads it before writing to it, or that still needs it."""
    for free in ops.memory._free.values():
        for block, _ in free:
            block.fill(np.nan)
    for scratch in ops.memory._scratch.values():
        scratch.fill(np.nan)


def results(ops, forward, backward, dy):
    """The value and the gradients, out of memory that was used before and has been spoilt since."""
    for _ in range(2):
        y, cache = forward()
        if ops is OPS:
            poison(ops)
        grads = as_tuple(backward(dy, cache))
        del cache
        if ops is OPS:
            poison(ops)
    return y, *grads


def op_results(ops, name, inputs):
    forward, backward = CASES[name].on(ops)
    y, _ = forward(**inputs)
    return results(ops, lambda: forward(**inputs), backward, np.asarray(np.random.default_rng(0).standard_normal(y.shape)))
