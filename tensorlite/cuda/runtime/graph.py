"""class CapturedStep: a whole training step as one CUDA graph, captured once and replayed.

A replay needs nothing from the host, because every value that changes from step to step is in device memory. The step number is
counted there (`end_step` of kernels/optim.cu). Keys, the learning rate and Adam's corrections are derived from it where they are
used (device_key.py, optim.py). The loss and the norm go into a ring buffer, which the host reads up to `max_in_flight` steps later.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tensorlite.arrays import Array
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool

RING_SIZE = 64  # steps whose loss and norm the ring holds: twice as many as a trainer may leave unread


class CapturedStep:
    """step(ops, task, state) of gpt/training/step.py, as a graph.

    The first call with a task and a state runs op by op: kernels are compiled, GEMMs are autotuned, and the memory pool learns what
    the step needs. The second call captures the graph and replays it, and all later calls replay it. The graph holds the constants
    of its task and the addresses of the state's buffers, so it is valid for that very task object and those very buffers. A call
    with others begins anew, with a memory pool of its own.
    """

    def __init__(self, ops: Any, step: Callable) -> None:
        self.ops = ops
        self.step = step
        self.device_step = DeviceStep(ops.runtime.empty((), np.dtype(np.int64)))
        self.step_on_device = -1  # the value of device_step, as far as the host knows
        self.loss_ring = ops.runtime.empty((RING_SIZE, 2), np.dtype(np.float32))
        self._forget()

    def _forget(self) -> None:
        self.valid_for: list[Any] = []  # the task and the buffers of the last call
        self.graph: Any = None
        self.pool = GraphMemoryPool(self.ops.runtime.block)

    def __call__(self, ops: Any, task: Any, state: Any) -> tuple[Array, Array]:
        """Make one update. Return the loss and the gradient's norm as views of the ring, overwritten RING_SIZE steps later."""
        if ops is not self.ops:
            raise ValueError("a step is captured for one backend object")
        if ops.check:
            raise ValueError("a step cannot be captured with check=True: a check of ids waits for the device")
        if self.step_on_device != state.step:  # a start, or a jump: otherwise the device has counted this step itself
            self.device_step.array[...] = state.step
        if not self._is_valid_for(task, state):
            self._forget()
            self._run(task, state)
            self.valid_for = [task, *state.buffers()]
        else:
            if self.graph is None:
                self.graph = self.ops.runtime.capture(lambda: self._run(task, state))
            self.graph.launch()
        slot = state.step % RING_SIZE
        state.step += 1
        self.step_on_device = state.step
        return self.loss_ring[slot, 0], self.loss_ring[slot, 1]

    def _is_valid_for(self, task: Any, state: Any) -> bool:
        """Whether these are the very objects of the last call. The values in the buffers may have changed."""
        objects = [task, *state.buffers()]
        return bool(self.valid_for) and all(a is b for a, b in zip(objects, self.valid_for, strict=True))

    def _run(self, task: Any, state: Any) -> None:
        """Run the step with a DeviceStep in place of the step number."""
        with self.ops.runtime.allocating(self.pool):
            on_device = dataclasses.replace(state, step=self.device_step)
            loss, norm = self.step(self.ops, task, on_device)
            end = {"step": self.device_step.array, "loss": loss, "norm": norm, "loss_ring": self.loss_ring, "ring_size": RING_SIZE}
            self.ops.launch("optim.cu", "end_step", 1, 1, **end)
