"""The machines on which the checks of the CUDA backend run: its kernels on a CPU, in two orders of threads.

The tests of a GPU replace `Both` by a machine of their own, and `guarded`, `as_bytes` and `close` by functions for its arrays. So
checks take a machine as argument, and look these functions up in this module when they are called.
"""

import functools

import numpy as np
import pytest

from cuda_bounds import UNIT
from cuda_bounds import close as close  # for the checks
from shim.host import HostRuntime, require_compiler
from tensorlite import Key, cuda

SM75 = "fp16 on 7.5"  # the kernels' path for compute capability 7.5
PRECISIONS = ("float32", "bf16", "fp16", SM75)
KEY = Key(5, 6, 3)
long_in_fp16 = [pytest.param(name, marks=pytest.mark.long if "fp16" in name else ()) for name in PRECISIONS]
every_precision = pytest.mark.parametrize("precision", long_in_fp16)


def as_arrays(value):
    """Flatten nested tuples into a list of arrays, absent ones included."""
    return [a for part in value for a in as_arrays(part)] if isinstance(value, tuple) else [value]


def guarded(ops, a):
    """Copy an array between guard zones, so that a write out of bounds is reported."""
    copy = ops.runtime.empty(a.shape, a.dtype)
    copy[...] = a
    return copy


def surrounded(a):
    """Copy an array into the middle of large values, so that a read out of bounds shows. NaN would look like a guard zone."""
    if not isinstance(a, np.ndarray):
        return a
    room = np.full(a.nbytes + 1024, 0x7B, np.uint8)  # 1e36 in float32 and bf16, 6e4 in fp16, and too large for an id
    start = 256 + -room.ctypes.data % 256
    copy = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


class Both:
    """The backend on two machines whose threads run in opposite orders. precision: one of PRECISIONS."""

    def __init__(self, precision, edits=None, separate=False):
        require_compiler()
        orders = [HostRuntime(order, edits=edits, separate=separate, sm75=precision == SM75) for order in ("forward", "reversed")]
        self.ops = [cuda.CUDAOps(precision.split()[0], runtime=host) for host in orders]
        self.dtype = self.ops[0].dtype
        self.unfused = self.dtype if separate else None

    def run(self, function, *arrays):
        """Return function(ops, *arrays) as a flat list. Assert that both machines agree bitwise and leave the arrays unchanged."""
        results = []
        for ops in self.ops:
            moved = [surrounded(a) for a in arrays]
            results.append(as_arrays(function(ops, *moved)))
            assert all(a is None or np.array_equal(as_bytes(a), as_bytes(b)) for a, b in zip(arrays, moved, strict=True))
        for a, b in zip(*results, strict=True):
            assert (a is None) == (b is None)
            assert a is None or np.array_equal(as_bytes(a), as_bytes(b)), "the order of threads or blocks shows in the result"
        return results[0]

    def draw(self, random, *shape, size=1.0):
        """Draw normal values that the precision can hold."""
        return np.asarray(size * random.standard_normal(shape)).astype(self.dtype)


def as_bytes(a):
    return np.frombuffer(np.ascontiguousarray(a).tobytes(), np.uint8)


@functools.cache
def both(precision, separate=False):
    return Both(precision, separate=separate)


def in_float64(value):
    if type(value) is tuple:
        return tuple(map(in_float64, value))
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype in UNIT else value


def generator(*seeds):
    return np.random.default_rng([int(n) for n in seeds])
