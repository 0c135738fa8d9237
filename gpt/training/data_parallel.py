"""Data parallelism: one step on many workers, each with a shard of the batch and its own backend.

The loss is a mean over rows, so its gradient is a sum over rows, and a sum may be split anywhere. Each shard runs the unchanged
model on its rows, with a backend of its own and with the global indices of its rows for batches and dropout masks. It scales its
gradient by rows / total, and the gradients of all shards are added. The shards may be on threads (NumPy lets others run while it
computes), on the processes of an mpiexec, or on several GPUs. docs/parallel.md derives this and says where its limits are.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from gpt.errors import ConfigError
from gpt.training.distributed import SingleProcess
from gpt.training.step import Task, TrainState, loss_and_gradients, train_step, update
from tensorlite import Array, Ops
from tensorlite.arrays import array_namespace


class Stopped(Exception):  # noqa: N818  (no error: a user asked for it)
    """Work on all ranks was left half done because one of them was asked to stop."""


class Workers:
    """This rank's share of the shards, each with a backend, and the threads that compute them.

    For a fixed number of ranks, and of shards above 1, results are bitwise identical for any number of threads.

    backend: returns a new backend; it is called once per shard of this rank.
    shards: the number of shards of the global batch, over all ranks.
    threads: the worker threads of this rank.
    ranks: the processes of the run; None: this one alone.

    Raises ConfigError if there are fewer shards than ranks.
    """

    def __init__(self, backend: Callable[[], Ops], shards: int = 1, threads: int = 1, ranks: SingleProcess | None = None) -> None:
        self.ranks = ranks or SingleProcess()
        if shards < self.ranks.size:
            raise ConfigError(
                f"shards {shards} cannot be spread over {self.ranks.size} ranks; set --shards {self.ranks.size} or more"
            )
        self.shards = shards
        self.local_shards = split_evenly(range(shards), self.ranks.size)[self.ranks.rank]
        self.backends = [backend() for _ in self.local_shards]
        self.threads = min(threads, len(self.local_shards))
        self.ops = self.backends[0]
        self.compiled_step = self.ops.compile(train_step)
        self._shard_grads: list[Array] = []  # the buffers of the second and later shards
        self._pool = ThreadPoolExecutor(max(1, self.threads - 1))  # it starts a thread when there is work for it

    @classmethod
    def of(cls, ops: Ops) -> "Workers":
        """One worker with this backend."""
        return cls(lambda: ops)

    def train_step(self, task: Task, state: TrainState) -> tuple[Any, Any]:
        """step.train_step on all workers: the same update, to the rounding of sums. Return the loss and the gradient's norm.

        With one shard the device may still be computing them, and reading them waits for it.
        """
        if self.shards == 1:
            return self.compiled_step(self.ops, task, state)
        shard_losses = self._shard_losses(task, state)
        self._sum_shard_grads(state.grads)
        self.ranks.all_reduce_(state.grads)
        loss = self.sum([sum(shard_losses)])[0]
        norm = self.ops.clip_grad_norm_(state.grads, task.train.grad_clip)
        self.map(lambda ops, part: update(ops, task, state, part), self._thread_slices(state.grads))
        state.step += 1
        return loss, float(norm)

    def _shard_losses(self, task: Task, state: TrainState) -> list[float]:
        """Return the share of the loss of each local shard.

        The first shard leaves its share of the gradient in state.grads, and the others leave theirs in self._shard_grads.
        """
        while len(self._shard_grads) < len(self.local_shards) - 1:
            self._shard_grads.append(array_namespace(state.grads).zeros_like(state.grads))
        grads = [state.grads, *self._shard_grads]
        shard_rows = split_evenly(range(task.train.batch_size), self.shards)

        def shard_loss(ops: Ops, i: int) -> float:
            rows = shard_rows[self.local_shards[i]]
            with ops.step():
                return float(loss_and_gradients(ops, task, state, batch_rows=rows, grads_out=grads[i]))

        return self.map(shard_loss, range(len(self.local_shards)))

    def _sum_shard_grads(self, grads: Array) -> None:
        """Add the gradients of the shards, in their order. Each thread adds a slice of the buffers."""

        def add(_: Any, part: slice) -> None:
            for buffer in self._shard_grads:
                grads[part] += buffer[part]

        self.map(add, self._thread_slices(grads))

    def _thread_slices(self, flat: Array) -> list[slice]:
        return [slice(part.start, part.stop) for part in split_evenly(range(len(flat)), self.threads)]

    def map(self, work: Callable[[Any, Any], Any], items: Sequence[Any]) -> list[Any]:
        """Return work(backend, item) for every item, in order.

        Each backend processes one item at a time. If one fails, its exception is raised after all others have finished.
        """
        results: list[Any] = [None] * len(items)
        idle: SimpleQueue[int] = SimpleQueue()  # the backends whose items no thread has begun
        for i in range(len(self.backends)):
            idle.put(i)

        def serve() -> None:
            with contextlib.suppress(Empty):
                while True:
                    i = idle.get_nowait()
                    for j in range(i, len(items), len(self.backends)):
                        results[j] = work(self.backends[i], items[j])

        others = [self._pool.submit(serve) for _ in range(self.threads - 1)]
        try:
            serve()  # this thread is one of the workers
        finally:
            wait(others)
        for other in others:
            other.result()  # raises the exception of that thread
        return results

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over the ranks, in float64."""
        total = np.array(values, np.float64)
        self.ranks.all_reduce_(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank. The answer is the same on all of them."""
        return self.sum([flag])[0] > 0

    def mean(self, value: float) -> float:
        """Return the mean of a value over the ranks. It is the same on all of them, so they may decide by it."""
        return self.sum([value])[0] / self.ranks.size

    def map_over_ranks(self, work: Callable[[Any, Any], float], items: Sequence[Any]) -> list[float]:
        """Return work(backend, item) for every item, in order, with the items divided among the ranks and threads.

        The results do not depend on the numbers of ranks and threads.

        Raises Stopped, on all ranks, if one of them was asked to stop. It skips the items that it has not begun.
        """
        local = split_evenly(range(len(items)), self.ranks.size)[self.ranks.rank]
        results = [0.0] * len(items)

        def unless_stopped(ops: Any, item: Any) -> float:
            return 0.0 if self.ranks.asked_to_stop() else work(ops, item)

        results[local.start : local.stop] = self.map(unless_stopped, items[local.start : local.stop])
        *results, stopped = self.sum([*results, self.ranks.asked_to_stop()])  # each result is summed with zeros
        if stopped:
            raise Stopped
        return results


def split_evenly(whole: range, n: int) -> list[range]:
    """Divide a range into n consecutive ranges whose lengths differ by at most 1."""
    bounds = [whole.start + i * len(whole) // n for i in range(n + 1)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]
