"""Memory and time of a run, before it starts: bytes counted from the op table, seconds of one step."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpt.config import ModelConfig, TrainConfig
from gpt.limits import available_memory
from gpt.models import MODELS
from gpt.params import Param, ParamTable
from tensorlite import Ops
from tensorlite.integers import ceil_div
from tensorlite.meta import MetaArray, MetaOps, cache_bytes
from tensorlite.op_info import OP_INFO, OpInfo

FLOAT_BYTES = 4  # bytes of a float32
LIBRARY_BYTES = 48 * 2**20  # measured: matplotlib once it has drawn, and the buffers of the BLAS
TRAIN_BUFFERS = 4  # parameters, gradients, and Adam's two moments
SCRATCH_ARRAYS = 8  # arrays of its own size that the backward of attention or GELU holds at once, at most
SLOW_CALL_S = 30.0  # a call at least this slow is timed once; a faster one is repeated because its first call also maps memory


@dataclass(frozen=True)
class Cost:
    """The size of a run, counted on shapes and not measured."""

    n_params: int
    state_bytes: int  # parameters, gradients, Adam's two moments, and copies of them
    cache_bytes: int  # arrays that forward saves for backward, for one micro-batch
    scratch_bytes: int  # temporaries of the largest op, in a step and in an evaluation
    flops: float  # of one update
    library_bytes: int = 0  # memory of the libraries that are loaded later

    @property
    def peak_bytes(self) -> int:
        """The sum of all the memory above."""
        return self.state_bytes + self.cache_bytes + self.scratch_bytes + self.library_bytes


class MetaParamTable(ParamTable):
    """A parameter table whose views are MetaArrays, with `itemsize` bytes per value."""

    def __init__(self, params: list[Param], itemsize: int = FLOAT_BYTES) -> None:
        super().__init__(params)
        self.itemsize = itemsize

    def view(self, flat: Any, param: Param) -> Any:  # noqa: ARG002
        return MetaArray(param.shape or (), self.itemsize)


def estimate_cost(
    config: ModelConfig,
    train: TrainConfig,
    op_table: Mapping[str, OpInfo] = OP_INFO,
    local_shards: int | None = None,
    itemsize: int = FLOAT_BYTES,
    on_cpu: bool = False,
    eval_rows: int = 0,
) -> Cost:
    """Run one step on shapes alone and return its memory and FLOPs.

    op_table: the op table of the backend, which says what its ops save.
    local_shards: how many of the shards this process computes; all of them by default.
    itemsize: bytes per activation.
    on_cpu: whether checkpoints are copied and written, and the loss curve is drawn, in the same memory.
    eval_rows: rows of an evaluation, for a backend that holds their memory in addition to that of a step; otherwise 0.
    """
    ops = MetaOps(op_table)
    local_shards = train.shards if local_shards is None else local_shards
    batch_rows = ceil_div(train.batch_size * local_shards, train.shards)
    table, saved_bytes = run_on_meta(ops, config, batch_rows, itemsize)
    # While a step is timed, all four buffers are copied. While a checkpoint is written, which on a CPU takes the same memory,
    # three of them are copied and become a file of the same size.
    copies = 6 if on_cpu else TRAIN_BUFFERS
    further_gradients = local_shards - 1
    largest = max(ops.largest, table.size)  # attention's scores, for example, if the backend stores them
    largest_in_eval = ops.largest * eval_rows // batch_rows
    return Cost(
        n_params=table.n_params,
        state_bytes=(TRAIN_BUFFERS + copies + further_gradients) * FLOAT_BYTES * table.size,
        cache_bytes=saved_bytes,
        scratch_bytes=SCRATCH_ARRAYS * itemsize * (largest + largest_in_eval),
        flops=sum(ops.flops.values()) * train.gradient_accumulation_steps,
        library_bytes=LIBRARY_BYTES if on_cpu else 0,
    )


def run_on_meta(ops: Ops, config: ModelConfig, batch_rows: int, itemsize: int = FLOAT_BYTES) -> tuple[ParamTable, int]:
    """Run forward and backward of `batch_rows` rows on shapes. Returns the parameter table and the bytes of forward's cache.

    ops: a MetaOps, which may be instrumented.
    """
    model = MODELS[config.model]
    table = MetaParamTable(model.init(config), itemsize)
    params = table.tree(None)
    idx = MetaArray((batch_rows, config.block_size), 8)
    _, cache = model.forward(ops, params, idx, idx, config, key=ops.step_key(0, 0))
    model.backward(ops, 1.0, cache)
    return table, cache_bytes(cache, params)


def available_bytes(xp: Any, threads: int = 0) -> int | None:
    """Return the bytes that a run may take: the free memory of a GPU, or all that this process may use of a CPU's.

    None: the system does not say.
    threads: how many threads the run has yet to start.
    """
    if xp.__name__ == "cupy":
        free, _ = xp.cuda.runtime.memGetInfo()
        return int(free)
    return available_memory(threads=threads)


def time_call(
    work: Callable[[], Any], across_ranks: Callable[[float], float] = float, budget_s: float = 1.0, warm_up: int = 1
) -> float:
    """Return the median seconds of a call, from as many calls as fit into `budget_s` or, if it is very slow, from one.

    across_ranks: reduces a time over the ranks, so that all ranks make the same number of calls.
    warm_up: how many first calls do not count.
    """
    times: list[float] = []

    def another_call() -> bool:
        within_budget = sum(times[warm_up:]) < budget_s and len(times) < 100
        slow = len(times) == 1 and times[0] >= SLOW_CALL_S
        return within_budget and not slow

    while another_call():
        start = time.perf_counter()
        work()
        times.append(across_ranks(time.perf_counter() - start))
    return statistics.median(times[warm_up:] or times)
