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
from tensorlite.integers import ceil_div
from tensorlite.meta import MetaArray, MetaOps, cache_bytes
from tensorlite.op_info import OP_INFO, OpInfo

FLOAT_BYTES = 4  # of a float32
LIBRARY_BYTES = 48 * 2**20  # measured: matplotlib once it has drawn, and the buffers of the BLAS
SLOW_CALL_S = 30.0  # a slower call is timed once; a faster first one is repeated, because it also maps its memory in


@dataclass(frozen=True)
class Cost:
    """Counted, not measured."""

    n_params: int
    state_bytes: int  # parameters, gradients, Adam's two moments, and their copies
    cache_bytes: int  # what forward saves for backward, for one micro-batch
    scratch_bytes: int  # the largest op's temporaries, in a step and in an evaluation
    flops: float  # of one update
    library_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
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
    """Run one step on shapes alone.

    op_table: that of the backend.
    local_shards: how many of the shards this process computes (all).
    itemsize: bytes per activation.
    on_cpu: whether a checkpoint is copied and written, and the curve drawn, in the same memory.
    eval_rows: rows that an evaluation holds beside those of a step, in a backend that keeps memory for each shape.
    """
    ops = MetaOps(op_table)
    local_shards = train.shards if local_shards is None else local_shards
    batch_rows = ceil_div(train.batch_size * local_shards, train.shards)
    table, cached = run_on_meta(ops, config, batch_rows, itemsize)
    largest = max(ops.largest, table.size)  # attention's scores, say, where the backend stores them
    copies = 6 if on_cpu else 4  # of the timed state; or, larger, three that are being written and the file that they make
    return Cost(
        n_params=table.n_params,
        state_bytes=(4 + copies + local_shards - 1) * FLOAT_BYTES * table.size,  # four buffers, and a gradient per further shard
        cache_bytes=cached,
        # the backward of attention or GELU holds up to eight arrays of its size at once
        scratch_bytes=8 * itemsize * (largest + ops.largest * eval_rows // batch_rows),
        flops=sum(ops.flops.values()) * train.gradient_accumulation_steps,
        library_bytes=LIBRARY_BYTES if on_cpu else 0,
    )


def run_on_meta(ops: Any, config: ModelConfig, batch_rows: int, itemsize: int = FLOAT_BYTES) -> tuple[ParamTable, int]:
    """Run forward and backward of `batch_rows` rows on a MetaOps. Returns the parameter table and the bytes of forward's cache."""
    model = MODELS[config.model]
    table = MetaParamTable(model.init(config), itemsize)
    params, idx = table.tree(None), MetaArray((batch_rows, config.block_size), 8)
    _, cache = model.forward(ops, params, idx, idx, config, key=ops.step_key(0, 0))
    model.backward(ops, 1.0, cache)
    return table, cache_bytes(cache, params)


def available_bytes(xp: Any, threads: int = 0) -> int | None:
    """Memory that a run may take on the device: what is free on a GPU, all that is allowed on a CPU, None where it is unknown.

    threads: how many threads the run has yet to start.
    """
    return int(xp.cuda.runtime.memGetInfo()[0]) if xp.__name__ == "cupy" else available_memory(threads=threads)


def time_call(
    work: Callable[[], Any], across_ranks: Callable[[float], float] = float, budget_s: float = 1.0, warm_up: int = 1
) -> float:
    """Return the median seconds of a call, made once if it takes very long, else as often as fits into `budget_s`.

    across_ranks: reduces a time over the ranks, so that all ranks make the same number of calls.
    warm_up: how many first calls are left out.
    """
    times: list[float] = []
    while len(times) < 100 and sum(times[warm_up:]) < budget_s and (len(times) != 1 or times[0] < SLOW_CALL_S):
        start = time.perf_counter()
        work()
        times.append(across_ranks(time.perf_counter() - start))
    return statistics.median(times[warm_up:] or times)
