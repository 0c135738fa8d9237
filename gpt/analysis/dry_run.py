"""train.py --dry-run: the kernels of a step on a GPU, their FLOPs, bytes and roofline, without a GPU.

The real backend runs on a runtime that only adds up costs (tensorlite/cuda/runtime/dry_run.py). A kernel takes at least its FLOPs
at the GPU's peak rate, and at least its arrays, each counted once, at the memory bandwidth. The larger of the two times is its
roofline (Williams, Waterman, Patterson 2009). The rates are datasheet figures. A real run is slower because no kernel reaches these
peaks, except where data is still in L2 from the previous kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from gpt.analysis.format import Cell, human_bytes, table
from gpt.analysis.gpus import GPUS, lookup_gpu
from gpt.analysis.instrument import Observer, instrument
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import ConfigError
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import Task, TrainState, train_step
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.attention import on_tensor_cores
from tensorlite.cuda.ops import Precision
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.cuda.runtime.dry_run import DryRunRuntime, KernelCost
from tensorlite.cuda.runtime.graph import RING_SIZE
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool

COLUMNS = ("op:32", "kernel:52", "calls:>6", "GFLOP:>9.1f", "bytes:>11", "roofline, us:>14.1f", "bound by:>12")


def step_table(config: ModelConfig, train: TrainConfig, precision: Precision | Literal["auto"], characters: int, gpu: str) -> str:
    """Return the table that `train.py --dry-run` prints.

    precision: auto is bf16 if the GPU supports it, otherwise fp16, otherwise float32.
    characters: length of the training text.
    gpu: a name that lookup_gpu knows.
    Raises ConfigError for an unknown GPU, and for a precision that the GPU does not support.
    """
    name = lookup_gpu(gpu)
    gpu_peaks = GPUS[name]
    if precision == "auto":
        precision = "bf16" if gpu_peaks.bf16 else "fp16" if gpu_peaks.fp16 else "float32"
    peak = getattr(gpu_peaks, precision)
    if peak is None:
        raise ConfigError(f"precision {precision} is not supported on the {name}; use --precision auto")
    runtime = DryRunRuntime()
    ops = CUDAOps(precision, check=False, runtime=runtime)
    graph_bytes = trace_step(ops, config, train, characters)
    state_bytes = 16 * ParamTable(MODELS[config.model].init(config)).size  # four float32 buffers
    on_cores, why = on_tensor_cores(ops, config.head_size, config.block_size, config.dropout > 0)
    attention = why if on_cores else f"without tensor cores, {why}"

    def roofline(kernel: str, cost: KernelCost) -> tuple[float, str]:
        """Return the least time of a kernel in microseconds, and the resource that bounds it."""
        on_matrix_units = kernel.startswith("gemm") or (on_cores and kernel.startswith("attention"))
        tflops = peak if on_matrix_units else gpu_peaks.float32
        compute_us = cost.flops / tflops / 1e6
        memory_us = cost.bytes / gpu_peaks.bandwidth / 1e3
        return max((compute_us, "arithmetic"), (memory_us, "bytes"))

    rows: list[Sequence[Cell]] = []
    total = KernelCost()
    total_us = 0.0
    for (op, kernel), cost in runtime.costs.items():
        least_us, bound = roofline(kernel, cost)
        rows.append((op, kernel, cost.calls, cost.flops / 1e9, human_bytes(cost.bytes), least_us, bound))
        total.calls += cost.calls
        total.flops += cost.flops
        total.bytes += cost.bytes
        total_us += least_us
    rows.append(("total", None, total.calls, total.flops / 1e9, human_bytes(total.bytes), total_us))

    lines = [
        f"a step on one {name} in {precision}: {peak:g} TFLOP/s, {gpu_peaks.bandwidth:g} GB/s (datasheet); attention: {attention}",
        table(rows, COLUMNS),
        f"memory   {human_bytes(graph_bytes)} for the graph, {human_bytes(state_bytes)} for parameters, gradients and moments",
    ]
    return "\n".join(lines)


def op_observer(runtime: Any) -> Observer:
    """Return an observer that tells the runtime which op is running. An op within an op counts as the outer one."""

    def observe(name: str, _: tuple, call: Callable[[], Any]) -> Any:
        outer = runtime.op
        runtime.op = outer or name
        try:
            return call()
        finally:
            runtime.op = outer

    return observe


def trace_step(ops: CUDAOps, config: ModelConfig, train: TrainConfig, characters: int) -> int:
    """Run one step on a DryRunRuntime, which adds up the costs of the kernels. Returns the bytes that its graph would reserve."""
    runtime = ops.runtime
    model = MODELS[config.model]
    table = ParamTable(model.init(config))
    params, grads, m, v = (np.empty(table.size, np.float32) for _ in range(4))
    device_step = DeviceStep(np.empty((), np.int64))
    state = TrainState(table, params, grads, m, v, device_step)  # type: ignore[arg-type]
    task = Task(model, config, train, data=np.empty(characters, np.uint16), seed=0)

    pool = GraphMemoryPool(runtime.block)
    with runtime.allocating(pool):
        loss, norm = train_step(instrument(ops, op_observer(runtime)), task, state)
        loss_ring = np.empty((RING_SIZE, 2), np.float32)
        end = {"step": device_step.array, "loss": loss, "norm": norm, "loss_ring": loss_ring, "ring_size": RING_SIZE}
        ops.launch("optim.cu", "end_step", 1, 1, **end)  # as CapturedStep does
    del loss, norm
    return pool.nbytes
