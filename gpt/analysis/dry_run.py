"""train.py --dry-run: the kernels of a step on a GPU, their FLOPs, bytes and roofline, without a GPU.

The real backend runs on a runtime that only adds up costs (tensorlite/cuda/runtime/dry_run.py). Each kernel is charged its FLOPs at
the GPU's peak or its arrays, each once, at the memory's bandwidth, datasheet figures both: the larger is its roofline (Williams,
Waterman, Patterson 2009). A real run is slower because no kernel reaches these peaks, except where data is still in L2 from the
previous kernel.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from gpt.analysis.format import human_bytes
from gpt.analysis.gpus import GPUS, lookup_gpu
from gpt.analysis.instrument import Observer, instrument
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


def step_table(config: ModelConfig, train: TrainConfig, precision: Precision | Literal["auto"], characters: int, gpu: str) -> str:
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
        f"{'op':32}{'kernel':52}{'calls':>6}{'GFLOP':>9}{'bytes':>11}{'roofline, us':>14}  bound by",
    ]
    if peaks.bf16 is None:
        lines.insert(
            0, f"note     the kernels need compute capability 8.0, the {name} has less: train.py takes the reference on it"
        )
    total = 0.0
    for (op, kernel), cost in runtime.costs.items():
        on_matrix_units = kernel.startswith("gemm") or (on_cores and kernel.startswith("attention"))
        compute_us = cost.flops / (peak if on_matrix_units else peaks.float32) / 1e6
        memory_us = cost.bytes / peaks.bandwidth / 1e3
        roofline, bound = max((compute_us, "arithmetic"), (memory_us, "bytes"))
        total += roofline
        columns = f"{cost.calls:6}{cost.flops / 1e9:9.1f}{human_bytes(cost.bytes):>11}{roofline:14.1f}"
        lines.append(f"{op:32}{kernel:52}{columns}  {bound}")
    costs = runtime.costs.values()
    launches, flops, moved = sum(c.calls for c in costs), sum(c.flops for c in costs), sum(c.bytes for c in costs)
    lines.append(f"{'in all':84}{launches:6}{flops / 1e9:9.1f}{human_bytes(moved):>11}{total:14.1f}")
    lines.append(
        f"memory   {human_bytes(memory)} for the graph, {human_bytes(16 * ParamTable(MODELS[config.model].init(config)).size)} "
        "for parameters, gradients and moments"
    )
    return "\n".join(lines)


def op_observer(runtime: Any) -> Observer:
    """Return an observer that tells the runtime which op is running: of nested ops the outermost."""

    def observe(name: str, _: tuple, call: Callable[[], Any]) -> Any:
        before, runtime.op = runtime.op, runtime.op or name
        try:
            return call()
        finally:
            runtime.op = before

    return observe


def trace_step(ops: CUDAOps, config: ModelConfig, train: TrainConfig, characters: int) -> int:
    """Run one step on the runtime, which adds up the costs of its kernels. Returns the bytes that its graph would reserve."""
    runtime, model = ops.runtime, MODELS[config.model]
    table = ParamTable(model.init(config))
    params, grads, m, v = (np.empty(table.size, np.float32) for _ in range(4))
    device_step = DeviceStep(np.empty((), np.int64))
    state = TrainState(table, params, grads, m, v, device_step)  # type: ignore[arg-type]
    data = np.empty(characters, np.uint16)

    pool = GraphMemoryPool(runtime.block)
    with runtime.allocating(pool):
        loss, norm = train_step(instrument(ops, op_observer(runtime)), model, state, data, config, train, 0)
        loss_ring = np.empty((RING_SIZE, 2), np.float32)
        end = {"step": device_step.array, "loss": loss, "norm": norm, "loss_ring": loss_ring, "ring_size": RING_SIZE}
        ops.launch("optim.cu", "end_step", 1, 1, **end)  # as CapturedStep does
    del loss, norm
    return pool.nbytes
