"""class DeviceLossScale: a loss scale in device memory, which kernels/optim.cu reads and updates."""

from typing import Any

import numpy as np

from tensorlite.arrays import Array
from tensorlite.loss_scale import LossScale


class DeviceLossScale:
    """The loss scale of a run. A captured step reads and updates it without the host, so replays follow it.

    The backends of several shards on one device share one object.

    runtime: where the array is.
    value: the loss scale before the first step.
    """

    def __init__(self, runtime: Any, value: LossScale | None = None) -> None:
        self.runtime = runtime
        self.array = runtime.empty((4,), np.dtype(np.float32))  # optim.cu: LossScale
        self.set(value or LossScale())

    def set(self, value: LossScale) -> None:
        """Write a loss scale to the device."""
        self.value = value  # as far as the host knows: it follows the rule when it reads the norms of the steps
        fields = [value.scale, value.finite_steps, value.skipped_steps, 0]
        self.array[...] = self.runtime.xp.asarray(fields, np.float32)

    def follow(self, norm: float) -> LossScale:
        """Take over the loss scale to which this norm of a gradient has led on the device. Return it."""
        self.value = self.value.after(norm)
        return self.value

    @property
    def scale(self) -> Array:
        """The scale alone: (), a view of the array."""
        return self.array[:1].reshape(())
