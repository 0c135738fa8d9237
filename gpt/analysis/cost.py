"""What a run will need, said before it starts: bytes counted from the op table, seconds from a timed step."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpt.analysis.limits import available_memory
from gpt.config import ModelConfig, TrainConfig
from gpt.models import MODELS
from gpt.params import Param, ParamTable
from tensorlite.meta import MetaArray, MetaOps, cache_bytes
from tensorlite.op_info import OP_INFO, OpInfo

FLOAT = 4  # bytes of a float32
LIBRARY_BYTES = 48 * 2**20  # measured: matplotlib once it has drawn, and the buffers of the BLAS
PATIENCE = 30.0  # seconds: a first call below it, which maps its memory in, is not taken for the rule


@dataclass(frozen=True)
class Cost:
    """Counted, not measured."""

    n_params: int
    state_bytes: int  # parameters, gradients, Adam's two moments, and their copies
    cache_bytes: int  # what forward keeps for backward, one micro-batch
    scratch_bytes: int  # the largest op's temporaries, in a step and in an evaluation
    flops: float  # of one update
    library_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        return self.state_bytes + self.cache_bytes + self.scratch_bytes + self.library_bytes


class MetaParamTable(ParamTable):
    """A parameter table whose views are shapes, of numbers of so many bytes."""

    def __init__(self, params: list[Param], itemsize: int = FLOAT) -> None:
        super().__init__(params)
        self.itemsize = itemsize

    def view(self, flat: Any, param: Param) -> Any:  # noqa: ARG002
        return MetaArray(param.shape or (), self.itemsize)


def estimate_cost(
    config: ModelConfig,
    train: TrainConfig,
    rows: Mapping[str, OpInfo] = OP_INFO,
    own_shards: int | None = None,
    itemsize: int = FLOAT,
    on_cpu: bool = False,
    eval_rows: int = 0,
) -> Cost:
    """Run one step on shapes alone.

    rows: the backend's op table.
    own_shards: how many of the shards are this process's (all).
    itemsize: bytes of an activation.
    on_cpu: whether a checkpoint is copied and written, and the curve drawn, in the same memory.
    eval_rows: rows that an evaluation holds beside those of a step, in a backend that keeps memory for each shape.
    """
    ops = MetaOps(rows)
    own_shards = train.shards if own_shards is None else own_shards
    batch_rows = -(-train.batch_size * own_shards // train.shards)
    table, cached = run_on_shapes(ops, config, batch_rows, itemsize)
    largest = max(ops.largest, table.size)  # attention's scores, say, where the backend stores them
    copies = 6 if on_cpu else 4  # of the timed state; or, larger, three that are being written and the file that they make
    return Cost(
        n_params=table.n_params,
        state_bytes=(4 + copies + own_shards - 1) * FLOAT * table.size,  # four buffers, and a gradient per further shard
        cache_bytes=cached,
        # the backward of attention or GELU holds up to eight arrays of its size at once
        scratch_bytes=8 * itemsize * (largest + ops.largest * eval_rows // batch_rows),
        flops=sum(ops.flops.values()) * train.gradient_accumulation_steps,
        library_bytes=LIBRARY_BYTES if on_cpu else 0,
    )


def run_on_shapes(ops: Any, config: ModelConfig, rows: int, itemsize: int = FLOAT) -> tuple[ParamTable, int]:
    """Forward and backward of so many rows on a MetaOps. Returns the parameters' table and the bytes that forward keeps."""
    model = MODELS[config.model]
    table = MetaParamTable(model.init(config), itemsize)
    params, idx = table.tree(None), MetaArray((rows, config.block_size), 8)
    _, cache = model.forward(ops, params, idx, idx, config, key=ops.step_key(0, 0))
    model.backward(ops, 1.0, cache)
    return table, cache_bytes(cache, params)


def available_bytes(xp: Any, threads: int = 0) -> int | None:
    """Memory that a run may take on the device, where the system tells: what is free on a GPU, all that is allowed on a CPU.

    threads: how many the run is still to start.
    """
    return int(xp.cuda.runtime.memGetInfo()[0]) if xp.__name__ == "cupy" else available_memory(threads=threads)


def time_call(work: Callable[[], Any], agreed: Callable[[float], float] = float, enough: float = 1.0, warm_up: int = 1) -> float:
    """Time a call: once if it takes very long, else as often as fits into `enough`; the median.

    agreed: what all ranks make of a time, so that all make the same number of calls. warm_up: first calls that are left out.
    """
    times: list[float] = []
    while len(times) < 100 and sum(times[warm_up:]) < enough and (len(times) != 1 or times[0] < PATIENCE):
        start = time.perf_counter()
        work()
        times.append(agreed(time.perf_counter() - start))
    return statistics.median(times[warm_up:] or times)


def human_bytes(n: float) -> str:
    """123456789 -> '118 MiB'."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"


def human_seconds(seconds: float) -> str:
    """5025 -> '84 min', 6000 -> '1 h 40 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 72 else f"{hours / 24:.1f} days"
