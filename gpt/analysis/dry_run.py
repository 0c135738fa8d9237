"""What a step on a GPU is made of, said without one: each op's kernels, what they compute and move, and its roofline.

The real backend runs on a runtime that only counts (tensorlite/cuda/runtime/dry_run.py). Each kernel is charged its FLOPs at the
GPU's peak or its arrays, each once, at the memory's bandwidth, datasheet figures both: the larger is its roofline (Williams,
Waterman, Patterson 2009). A run is slower, since no kernel reaches either, but for what the cache still holds of the kernel before.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from gpt.analysis.cost import human_bytes
from gpt.analysis.gpus import GPUS, lookup_gpu
from gpt.analysis.profile import instrument
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import ConfigError
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import TrainState, train_step
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.attention import on_tensor_cores
from tensorlite.cuda.ops import Precision
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.cuda.runtime.dry_run import DryRunRuntime
from tensorlite.cuda.runtime.graph import RING_SIZE
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool


def step_plan(config: ModelConfig, train: TrainConfig, precision: Precision | Literal["auto"], characters: int, gpu: str) -> str:
    """The table that `train.py --dry-run` prints. precision: auto is bf16 where the GPU has it.

    Raises ConfigError for a GPU, or a precision of it, without figures.
    """
    name = lookup_gpu(gpu)
    peaks = GPUS[name]
    if precision == "auto":
        precision = "bf16" if peaks.bf16 else "float32"
    peak = getattr(peaks, precision)
    if peak is None:
        raise ConfigError(f"precision {precision}: the tensor cores of the {name} do not know it; --precision float32")
    runtime = DryRunRuntime()
    ops = CUDAOps(precision, check=False, runtime=runtime)
    memory = trace_step(ops, config, train, characters)
    on_cores, why = on_tensor_cores(ops, config.head_size, config.block_size, config.dropout > 0)
    lines = [
        f"a step on one {name} in {precision}: {peak:g} TFLOP/s, {peaks.bandwidth:g} GB/s (datasheet); "
        f"attention: {why if on_cores else f'without tensor cores, {why}'}",
        f"{'op':24}{'kernel':52}{'calls':>6}{'GFLOP':>9}{'bytes':>11}{'roofline, us':>14}  bound by",
    ]
    if peaks.bf16 is None:
        lines.insert(
            0, f"note     the kernels need compute capability 8.0, the {name} has less: train.py takes the reference on it"
        )
    total = 0.0
    for (op, kernel), row in runtime.rows.items():
        matrix = kernel.startswith("product") or (on_cores and kernel.startswith("attention"))
        arithmetic = row.flops / (peak if matrix else peaks.float32) / 1e6
        moving = row.bytes / peaks.bandwidth / 1e3
        roofline, bound = max((arithmetic, "arithmetic"), (moving, "bytes"))
        total += roofline
        counted = f"{row.calls:6}{row.flops / 1e9:9.1f}{human_bytes(row.bytes):>11}{roofline:14.1f}"
        lines.append(f"{op:24}{kernel:52}{counted}  {bound}")
    rows = runtime.rows.values()
    launches, flops, moved = sum(r.calls for r in rows), sum(r.flops for r in rows), sum(r.bytes for r in rows)
    lines.append(f"{'in all':76}{launches:6}{flops / 1e9:9.1f}{human_bytes(moved):>11}{total:14.1f}")
    lines.append(
        f"memory   {human_bytes(memory)} for the graph, {human_bytes(16 * ParamTable(MODELS[config.model].init(config)).size)} "
        "for parameters, gradients and moments"
    )
    return "\n".join(lines)


def op_observer(runtime: Any) -> Callable:
    """For gpt.profile.watch: tells the runtime which op is running, the outermost of several."""

    def observe(name: str, _: tuple, call: Callable[[], Any]) -> Any:
        before, runtime.op = runtime.op, runtime.op or name
        try:
            return call()
        finally:
            runtime.op = before

    return observe


def trace_step(ops: CUDAOps, config: ModelConfig, train: TrainConfig, characters: int) -> int:
    """Fill the runtime's rows with a step; return the bytes that its graph would reserve."""
    runtime, model = ops.runtime, MODELS[config.model]
    table = ParamTable(model.init(config))
    params, grads, m, v = (np.empty(table.size, np.float32) for _ in range(4))
    counter = DeviceStep(np.empty((), np.int64))
    state = TrainState(table, params, grads, m, v, counter)  # type: ignore[arg-type]
    data = np.empty(characters, np.uint16)

    arena = GraphMemoryPool(runtime.block)
    with runtime.allocating(arena):
        loss, norm = train_step(instrument(ops, op_observer(runtime)), model, state, data, config, train, 0)
        ring = np.empty((RING_SIZE, 2), np.float32)
        ops.launch("optim.cu", "end_step", 1, 1, counter.array, loss, norm, ring, RING_SIZE)  # as CapturedStep does
    del loss, norm
    return arena.nbytes
