"""One training step on many workers: split the batch into shards, sum their gradients, share the update.

The loss is a mean over rows, so its gradient is a sum over rows, and sums may be split anywhere. Each shard runs the unchanged
model on its rows, with a backend of its own and its rows' global numbers for batches and dropout masks, and scales by
rows / total. What is left to do is to add. The shards may be on threads (NumPy lets others run while it computes), on the
processes of an mpiexec, or on several GPUs: docs/parallel.md derives it and says where a user should leave for bigger tools.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.errors import ConfigError
from gpt.training.distributed import SingleProcess
from gpt.training.step import TrainState, loss_and_gradients, train_step, update
from tensorlite.arrays import Array, array_namespace


class Stopped(Exception):  # noqa: N818  (no error: somebody asked for it)
    """Work on all ranks was left half done because one of them was asked to stop."""


class Workers:
    """This rank's share of the shards, each with a backend, and the threads that serve them.

    backend: makes one; called once a shard. shards: of the whole batch, over all ranks. threads: of this rank. The bits of a step
    depend on the shards and ranks, and not on the threads.
    """

    def __init__(self, backend: Callable[[], Any], shards: int = 1, threads: int = 1, ranks: SingleProcess | None = None) -> None:
        self.ranks = ranks or SingleProcess()
        if shards < self.ranks.size:
            raise ConfigError(
                f"shards {shards} cannot be spread over {self.ranks.size} ranks; set --shards {self.ranks.size} or more"
            )
        self.shards = shards
        self.local_shards = split(range(shards), self.ranks.size)[self.ranks.rank]
        self.backends = [backend() for _ in self.local_shards]
        self.threads = min(threads, len(self.local_shards))
        self.ops = self.backends[0]
        self.compiled = self.ops.compile(train_step)
        self._buffers: list[Array] = []  # gradients of the second and later shards
        self._pool = ThreadPoolExecutor(max(1, self.threads - 1))  # starts a thread when there is work for it

    @classmethod
    def of(cls, ops: Any) -> "Workers":
        """One worker with this backend."""
        return cls(lambda: ops)

    def train_step(
        self, model: ModuleType, state: TrainState, data: Array, config: ModelConfig, train: TrainConfig, seed: int
    ) -> tuple[Any, Any]:
        """step.train_step on all workers: the same update, to the rounding of sums. Returns the loss and the gradient's norm.

        With one shard they may still be on their way: reading them waits for the device.
        """
        if self.shards == 1:
            return self.compiled(self.ops, model, state, data, config, train, seed)
        shares = self._shares(model, state, data, config, train, seed)
        self._add(state.grads)
        self.ranks.all_reduce_(state.grads)
        loss = self.sum([sum(shares)])[0]
        norm = self.ops.clip_grad_norm_(state.grads, train.grad_clip)
        self.map(lambda ops, part: update(ops, state, train, part), self._parts(state.grads))
        state.step += 1
        return loss, float(norm)

    def _shares(
        self, model: ModuleType, state: TrainState, data: Array, config: ModelConfig, train: TrainConfig, seed: int
    ) -> list[float]:
        """Each shard's share of the loss; its share of the gradient is left in a buffer, the first one's in state.grads."""
        while len(self._buffers) < len(self.local_shards) - 1:
            self._buffers.append(array_namespace(state.grads).zeros_like(state.grads))
        buffers, rows = [state.grads, *self._buffers], split(range(train.batch_size), self.shards)

        def share(ops: Any, i: int) -> float:
            with ops.step():
                return float(
                    loss_and_gradients(ops, model, state, data, config, train, seed, rows[self.local_shards[i]], buffers[i])
                )

        return self.map(share, range(len(self.local_shards)))

    def _add(self, grads: Array) -> None:
        """The shards' gradients, added in the order of the shards; each thread takes a part of the buffer."""

        def add(_: Any, part: slice) -> None:
            for buffer in self._buffers:
                grads[part] += buffer[part]

        self.map(add, self._parts(grads))

    def _parts(self, flat: Array) -> list[slice]:
        return [slice(part.start, part.stop) for part in split(range(len(flat)), self.threads)]

    def map(self, work: Callable[[Any, Any], Any], items: Sequence[Any]) -> list[Any]:
        """work(backend, item) of every item, in order. A backend serves one item at a time; an error waits for the others."""
        results: list[Any] = [None] * len(items)
        waiting: SimpleQueue[int] = SimpleQueue()  # numbers of backends whose items nobody has taken up
        for i in range(len(self.backends)):
            waiting.put(i)

        def serve() -> None:
            with contextlib.suppress(Empty):
                while True:
                    i = waiting.get_nowait()
                    for j in range(i, len(items), len(self.backends)):
                        results[j] = work(self.backends[i], items[j])

        others = [self._pool.submit(serve) for _ in range(self.threads - 1)]
        try:
            serve()  # this thread is one of them
        finally:
            wait(others)
        for other in others:
            other.result()  # raises what it raised
        return results

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Each number's sum over the ranks, in float64."""
        total = np.array(numbers, np.float64)
        self.ranks.all_reduce_(total)
        return total.tolist()

    def mean(self, number: float) -> float:
        """Its mean over the ranks: the same on all of them, whatever they decide by it."""
        return self.sum([number])[0] / self.ranks.size

    def map_over_ranks(self, work: Callable[[Any, Any], float], items: Sequence[Any]) -> list[float]:
        """As `each`, with the items spread over the ranks too. The numbers do not depend on the ranks or threads.

        Raises Stopped, on all ranks, when one of them was asked to stop; what is left of its items is then skipped.
        """
        own = split(range(len(items)), self.ranks.size)[self.ranks.rank]
        numbers = [0.0] * len(items)

        def unless_stopped(ops: Any, item: Any) -> float:
            return 0.0 if self.ranks.asked_to_stop() else work(ops, item)

        numbers[own.start : own.stop] = self.map(unless_stopped, items[own.start : own.stop])
        *numbers, stopped = self.sum([*numbers, self.ranks.asked_to_stop()])  # a number plus zeros
        if stopped:
            raise Stopped
        return numbers


def split(whole: range, n: int) -> list[range]:
    """n neighbouring parts of nearly one size: uneven where n does not divide it."""
    at = [whole.start + i * len(whole) // n for i in range(n + 1)]
    return [range(a, b) for a, b in itertools.pairwise(at)]
