"""Runs the checks of the CUDA backend's ops on a real GPU. It also computes what they are compared with."""

import numpy as np
import pytest

from cuda_bounds import BF16
from cuda_machines import as_arrays
from cuda_op_checks import UNFUSED
from tensorlite import to_numpy
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.runtime.device import MIN_ARCHITECTURE

# What cuBLASLt is asked to fuse, (op, precision); a GELU in float32 it is never asked for.
FUSED_BY_CUBLASLT = [(name, precision) for name in UNFUSED for precision in ("float32", "fp16", "bf16")]
FUSED_BY_CUBLASLT.remove(("mlp", "float32"))


def require(runtime, precision):
    """Skip the test unless the GPU supports this precision."""
    needed = MIN_ARCHITECTURE[precision.split()[0]]
    if runtime.capability < needed:
        pytest.skip(f"{precision} needs compute capability {needed / 10}, the GPU has {runtime.capability / 10}")


class Machine:
    """In the place of cuda_machines.Both: what it runs, it runs twice on the GPU, for the same bits.

    runtime: that of cuda_machines.SM75 takes the kernels' path for compute capability 7.5.
    """

    def __init__(self, precision, runtime, xp, unfused=True):
        self.ops, self.xp = CUDAOps(precision.split()[0], runtime=runtime), xp
        self.dtype = np.dtype(self.ops.dtype)
        self.unfused = self.dtype if unfused else None  # the output of a GEMM may be stored before its bias is added

    def run(self, function, *arrays):
        """function(ops, *arrays), as a flat list of NumPy arrays; the arrays stay as they were."""
        results = []
        for _ in range(2):
            moved = [self.on_device(a) for a in arrays]
            results.append([None if a is None else on_host(a) for a in as_arrays(function(self.ops, *moved))])
            for a, b in zip(arrays, moved, strict=True):
                assert not isinstance(a, np.ndarray) or on_host(b).tobytes() == a.tobytes()
        for a, b in zip(*results, strict=True):
            assert a is b is None or a.tobytes() == b.tobytes(), "a second run has other bits"
        return results[0]

    def on_device(self, a):
        if not isinstance(a, np.ndarray | np.generic):
            return a
        return self.xp.asarray(a.view(np.uint16)).view(BF16) if a.dtype == BF16 else self.xp.asarray(a)

    def draw(self, random, *shape, size=1.0):
        """Normal numbers that the precision can hold. In float32 they are bfloat16's, which tf32 can hold, too."""
        held = self.dtype if self.dtype.itemsize == 2 else BF16
        return np.asarray(size * random.standard_normal(shape)).astype(held).astype(self.dtype)


def on_host(a):
    return to_numpy(a.view(np.uint16)).view(BF16) if a.dtype == BF16 else to_numpy(a)


class ForcedEpilogues:
    """A runtime that does not autotune epilogues: all are fused, or all unfused."""

    def __init__(self, runtime, fused):
        self.runtime, self.fused = runtime, fused

    def __getattr__(self, name):
        return getattr(self.runtime, name)

    def gemm(self, *args, unfused=None, **options):
        if unfused is not None and not self.fused:
            unfused()
        else:
            self.runtime.gemm(*args, **options)
