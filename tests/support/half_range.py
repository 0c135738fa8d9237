"""A runtime that stores the gradients of logits as float16 would where they are too large, and runs with a loss scale on it."""

import numpy as np

from shim.host import HostRuntime, unpooled
from tensorlite import cuda
from tensorlite.cuda.loss_scale import DeviceLossScale
from tensorlite.loss_scale import LossScale

LARGEST = 65504.0  # of float16


class HalfRange(HostRuntime):
    """Gradients of logits beyond float16's largest value become infinite, in eager and in replayed steps."""

    def launch(self, file, kernel, *size, **args):
        super().launch(file, kernel, *size, **args)
        if kernel == "cross_entropy_backward":
            dlogits = unpooled(args["dlogits"])
            self._do(lambda: np.copyto(dlogits, np.inf, where=np.abs(dlogits) > LARGEST))


def scaled_ops(precision="float32", scale=2.0**24, order="forward", runtime=HalfRange, **options):
    """Return a backend with a loss scale."""
    machine = runtime(order, **options)
    return cuda.CUDAOps(precision, check=False, runtime=machine, loss_scale=DeviceLossScale(machine, LossScale(scale)))


def value_on(loss_scale):
    """Return the loss scale that is in device memory."""
    scale, finite_steps, skipped_steps, _ = loss_scale.array.tolist()
    return LossScale(scale, int(finite_steps), int(skipped_steps))


class LeavesOut(cuda.CUDAOps):
    """A backend without a loss scale, for runs in which a test leaves steps out. AdamW counts the updates that were made."""

    left_out = 0

    def adamw_(self, *buffers, t, **options):
        super().adamw_(*buffers, t=t - self.left_out, **options)
