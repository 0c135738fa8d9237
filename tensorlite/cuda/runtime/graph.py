"""class CapturedStep: a whole training step as one CUDA graph, captured once and replayed.

The host has nothing to do between. What makes that right: every value that changes from step to step is in device memory. The
step number is counted there (`end_step` of kernels/optim.cu); keys, the learning rate and Adam's corrections are derived from it
where they are used (device_key.py, optim.py). The loss and the norm go into a ring buffer, which the host reads up to
`max_in_flight` steps later.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tensorlite.arrays import Array
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool

RING_SIZE = 64  # steps whose loss and norm are kept: twice as many as a trainer may leave unread


class CapturedStep:
    """step(ops, model, state, data, config, train, seed) of gpt/training/step.py, as a graph.

    The first call with some arguments runs op by op: kernels are compiled, GEMMs are autotuned, and the memory pool learns what the
    step needs. The second call captures the graph and replays it, and all later calls replay it. A graph is valid for the very
    arguments it was captured with, buffers included: a call with others begins anew, with a memory pool of its own.
    """

    def __init__(self, ops: Any, step: Callable) -> None:
        self.ops, self.step = ops, step
        self._forget()
        self.step_on_device = -1  # the value of device_step, as far as the host knows
        self.device_step = DeviceStep(ops.runtime.empty((), np.dtype(np.int64)))
        self.loss_ring = ops.runtime.empty((RING_SIZE, 2), np.dtype(np.float32))

    def _forget(self) -> None:
        self.made_for: tuple | None = None
        self.graph: Any = None
        self.pool = GraphMemoryPool(self.ops.runtime.block)

    def __call__(self, ops: Any, model: Any, state: Any, data: Array, config: Any, train: Any, seed: int) -> tuple[Array, Array]:
        """Make one update. Returns the loss and the gradient's norm as views of the ring, overwritten RING_SIZE steps later."""
        if ops is not self.ops:
            raise ValueError("a step is captured for one backend object")
        if ops.check:
            raise ValueError("a step cannot be captured with check=True: to look at ids is to wait for the device")
        buffers = (state.params, state.grads, state.m, state.v, data)
        arguments = (model, config, train, seed, *((ops.address(a), a.shape, a.dtype) for a in buffers))
        if self.step_on_device != state.step:  # a start, or a jump: otherwise the device has counted this step itself
            self.device_step.array[...] = state.step
        if arguments != self.made_for:
            self._forget()
            self._run(model, state, data, config, train, seed)
            self.made_for = arguments
        else:
            if self.graph is None:
                self.graph = ops.runtime.capture(lambda: self._run(model, state, data, config, train, seed))
            self.graph.launch()
        slot = state.step % RING_SIZE
        state.step += 1
        self.step_on_device = state.step
        return self.loss_ring[slot, 0], self.loss_ring[slot, 1]

    def _run(self, model: Any, state: Any, data: Array, config: Any, train: Any, seed: int) -> None:
        """The step, with a DeviceStep in place of the step number."""
        with self.ops.runtime.allocating(self.pool):
            on_device = dataclasses.replace(state, step=self.device_step)
            loss, norm = self.step(self.ops, model, on_device, data, config, train, seed)
            end = {"step": self.device_step.array, "loss": loss, "norm": norm, "loss_ring": self.loss_ring, "ring_size": RING_SIZE}
            self.ops.launch("optim.cu", "end_step", 1, 1, **end)
