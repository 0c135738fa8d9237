"""A CudaRuntime without a GPU: it autotunes as the real one does, by a clock that counts instead of running."""

import ml_dtypes
import numpy as np

from fake_cublaslt import FakeLibrary
from gpt.analysis.gpus import GPUS
from tensorlite.cuda.runtime import device
from tensorlite.cuda.runtime.autotune import AutotuneCache
from tensorlite.cuda.runtime.dry_run import DryRunRuntime

CLOCK_HZ = 1.75e9  # of an H200's SMs, for the spinning kernel


class TunedRuntime(DryRunRuntime):
    """On it a kernel takes its roofline on an H200, and a GEMM has 16 algorithms that take the same time, so none is dropped.

    timed: how many candidates were timed so far, once per round.
    tuning_s: the seconds that this took on the GPU, spinning included.
    ran: the plan and the algorithm of each GEMM that ran.
    """

    gemm = device.CudaRuntime.gemm
    _autotune = device.CudaRuntime._autotune
    _algos = device.CudaRuntime._algos

    def __init__(self):
        super().__init__()
        self.bfloat16 = np.dtype(ml_dtypes.bfloat16)
        self.library, self.handle, self._plans = FakeLibrary(algos=16), None, {}
        self.autotune_cache = AutotuneCache("a counted H200")
        self.gpu = GPUS["H200"]
        self.busy_s = self.tuning_s = 0.0
        self.timed, self.ran = 0, []

    def launch(self, file, kernel, grid, block, /, *, flops=0.0, defines=None, shared=0, touches=(), **args):
        self._take(flops, [a for a in args.values() if isinstance(a, np.ndarray) and not a.dtype.names])

    def _run(self, plan, algo, a, b, out, extra):
        self.ran.append((plan, algo))
        self._take(plan.problem.flops, [a, b, out])

    def _take(self, flops, arrays):
        self.busy_s += max(flops / self.gpu.bf16 / 1e12, sum(a.nbytes for a in arrays) / self.gpu.bandwidth / 1e9)

    def time_call(self, work):
        work()  # the first call may autotune a GEMM inside
        before = self.busy_s
        work()
        seconds = self.busy_s - before
        self.timed += 1
        self.tuning_s += (1 + device.TIMED_CALLS) * seconds + device.SPIN_CLOCKS / CLOCK_HZ
        return seconds
