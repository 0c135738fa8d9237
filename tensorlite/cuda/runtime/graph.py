"""A whole training step as one graph: captured once, launched again at every later step, with nothing for the host to do between.

What makes that right: every number that changes from step to step is in device memory. The step's number is counted there
(`end_step` of kernels/optim.cu); keys, the learning rate and Adam's corrections are made of it where they are used (random.py,
optim.py). The loss and the norm go into a ring of slots, which the host reads when it likes, up to `Ops.max_in_flight` steps later.
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

    The first call with some arguments runs op by op: kernels are compiled, products timed, and the arena learns what it needs. The
    second is captured and launched, all later ones are launched. A graph is good for the very arguments it was made with, buffers
    included: a call with others begins anew with an arena of its own.
    """

    def __init__(self, ops: Any, step: Callable) -> None:
        self.ops, self.step = ops, step
        self._forget()
        self.counted = -1  # the step that the device's counter is at
        self.counter = DeviceStep(ops.runtime.empty((), np.dtype(np.int64)))
        self.ring = ops.runtime.empty((RING_SIZE, 2), np.dtype(np.float32))

    def _forget(self) -> None:
        self.made_for: tuple | None = None
        self.graph: Any = None
        self.arena = GraphMemoryPool(self.ops.runtime.block)

    def __call__(self, ops: Any, model: Any, state: Any, data: Array, config: Any, train: Any, seed: int) -> tuple[Array, Array]:
        """Make one update. Returns the loss and the gradient's norm as views of the ring, which SLOTS steps later are another's."""
        if ops is not self.ops:
            raise ValueError("a step is captured for one backend object")
        if ops.check:
            raise ValueError("a step cannot be captured with check=True: to look at ids is to wait for the device")
        buffers = (state.params, state.grads, state.m, state.v, data)
        arguments = (model, config, train, seed, *((ops.address(a), a.shape, a.dtype) for a in buffers))
        if self.counted != state.step:  # a start, or a jump: else the device has counted on by itself
            self.counter.array[...] = state.step
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
        self.counted = state.step
        return self.ring[slot, 0], self.ring[slot, 1]

    def _run(self, model: Any, state: Any, data: Array, config: Any, train: Any, seed: int) -> None:
        """The step, with a DeviceStep in the place of its number."""
        with self.ops.runtime.allocating(self.arena):
            counting = dataclasses.replace(state, step=self.counter)
            loss, norm = self.step(self.ops, model, counting, data, config, train, seed)
            self.ops.launch("optim.cu", "end_step", 1, 1, self.counter.array, loss, norm, self.ring, RING_SIZE)
