"""train.py --dry-run: the kernels of a step on a GPU, their roofline and counted time.

The real backend runs on a runtime that only adds up costs (tensorlite/cuda/runtime/dry_run.py). A kernel takes at least its FLOPs
at the GPU's peak rate, and at least its arrays, each counted once, at the memory bandwidth. The larger of the two times is its
roofline (Williams, Waterman, Patterson 2009). The rates are datasheet figures. A real run is slower because no kernel reaches these
peaks, except where data is still in L2 from the previous kernel. The counted time is that of step_model.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from gpt.analysis import assumptions as assume
from gpt.analysis.format import Cell, human_bytes, human_seconds, table
from gpt.analysis.gpus import GPUS, Gpu, lookup_gpu
from gpt.analysis.instrument import Observer, instrument
from gpt.analysis.launch_count import SAMPLES, code_architecture
from gpt.analysis.step_model import KernelEstimate, estimate, step_seconds
from gpt.analysis.thread_walk import EndlessError
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import ConfigError
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import Task, TrainState, train_step
from tensorlite import DeviceError
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.attention import on_tensor_cores
from tensorlite.cuda.ops import Precision
from tensorlite.cuda.runtime.device import best_precision
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.cuda.runtime.dry_run import DryRunRuntime, KernelCost
from tensorlite.cuda.runtime.graph import RING_SIZE
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool

COLUMNS = ("op:34", "kernel:45", "calls:>6", "GFLOP:>9.1f", "bytes:>10", "roofline, us:>14.1f")
COUNTED_COLUMNS = ("counted, us:>13.1f", "bound by:>12", "registers:>11", "occupancy:>11.0%", "masks:>7.0%")
ROOFLINE_COLUMNS = ("bound by:>12",)


def step_table(config: ModelConfig, train: TrainConfig, want: Precision | Literal["auto"], characters: int, gpu: str) -> str:
    """Return the table that `train.py --dry-run` prints.

    want: a precision; auto is the best that the GPU supports, as in training.
    characters: length of the training text.
    gpu: a name that lookup_gpu knows.
    Raises ConfigError for an unknown GPU, and for a precision that the GPU does not support.
    """
    name = lookup_gpu(gpu)
    card = GPUS[name]
    precision: Any = best_precision(card.capability) if want == "auto" else want
    peak = getattr(card, precision)
    if peak is None:
        raise ConfigError(f"precision {precision} is not supported on the {name}; use --precision auto")
    runtime = DryRunRuntime()
    ops = CUDAOps(precision, check=False, runtime=runtime)
    graph_bytes = trace_step(ops, config, train, characters)
    state_bytes = 16 * ParamTable(MODELS[config.model].init(config)).size  # four float32 buffers
    on_cores, why = on_tensor_cores(ops, config.head_size, config.block_size, config.dropout > 0)
    attention = why if on_cores else f"without tensor cores, {why}"

    lines = [
        f"a step on one {name} in {precision}: {peak:g} TFLOP/s, {card.bandwidth:g} GB/s (datasheet); attention: {attention}",
    ]
    rooflines = {key: roofline(key[1], cost, card, precision, on_cores) for key, cost in runtime.costs.items()}
    try:
        estimates = estimate(runtime.launches, card, precision)
        lines.append(_counted_table(runtime, rooflines, estimates))
        lines += _about_the_count(estimates, train.max_iters, card)
    except (DeviceError, EndlessError) as error:
        lines.append(_roofline_table(runtime, rooflines))
        reason = str(error).splitlines()[0]
        lines.append(f'note     nothing is counted ({reason}); pip install -e ".[kernels]" installs NVRTC and nvdisasm')
    lines.append(
        f"memory   {human_bytes(graph_bytes)} for the graph, {human_bytes(state_bytes)} for parameters, gradients and moments"
    )
    return "\n".join(lines)


def roofline(kernel: str, cost: KernelCost, card: Gpu, precision: str, on_cores: bool) -> tuple[float, str]:
    """Return the least time of a kernel in microseconds, and the resource that bounds it.

    on_cores: whether attention runs on the tensor cores.
    """
    on_matrix_units = kernel.startswith("gemm") or (on_cores and kernel.startswith("attention"))
    tflops = getattr(card, precision) if on_matrix_units else card.float32
    compute_us = cost.flops / tflops / 1e6
    memory_us = cost.bytes / card.bandwidth / 1e3
    return max((compute_us, "arithmetic"), (memory_us, "bytes"))


Rooflines = dict[tuple[str, str], tuple[float, str]]


def _roofline_table(runtime: DryRunRuntime, rooflines: Rooflines) -> str:
    """Return one line per kernel and the total."""
    rows: list[list[Cell]] = []
    for key, cost in runtime.costs.items():
        least_us, bound = rooflines[key]
        rows.append([*_cost_cells(key, cost), least_us, bound])
    rows.append(_total_cells(runtime, rooflines))
    return table(rows, COLUMNS + ROOFLINE_COLUMNS)


def _counted_table(runtime: DryRunRuntime, rooflines: Rooflines, estimates: Sequence[KernelEstimate]) -> str:
    """Return the same with the counted time, what bounds it, and what the kernel's code needs."""
    rows: list[list[Cell]] = []
    for entry in estimates:
        key = entry.op, entry.kernel
        masks = entry.mask_share if entry.mask_share and entry.mask_share >= 0.05 else None  # the key alone is less
        counted: list[Cell] = [entry.seconds * 1e6, entry.bound, entry.registers, entry.occupancy, masks]
        rows.append([*_cost_cells(key, runtime.costs[key]), rooflines[key][0], *counted])
    calls = sum(entry.calls for entry in estimates)
    rows.append(["gaps between kernels", None, calls, None, None, None, calls * assume.GAP * 1e6])
    rows.append([*_total_cells(runtime, rooflines), step_seconds(estimates) * 1e6])
    return table(rows, COLUMNS + COUNTED_COLUMNS)


def _cost_cells(key: tuple[str, str], cost: KernelCost) -> list[Cell]:
    op, kernel = key
    return [op, kernel, cost.calls, cost.flops / 1e9, human_bytes(cost.bytes)]


def _total_cells(runtime: DryRunRuntime, rooflines: Rooflines) -> list[Cell]:
    total = KernelCost()
    for cost in runtime.costs.values():
        total.calls += cost.calls
        total.flops += cost.flops
        total.bytes += cost.bytes
    return [*_cost_cells(("total", ""), total), sum(us for us, _ in rooflines.values())]


def _about_the_count(estimates: Sequence[KernelEstimate], steps: int, card: Gpu) -> list[str]:
    """Return the time of the run and the assumptions behind the counted columns."""
    seconds = step_seconds(estimates)
    by_alu = [entry.kernel for entry in estimates if entry.bound == "alu" and entry.mask_share and entry.mask_share > 0.25]
    architecture = code_architecture(card.capability)
    lines = [
        f"counted, not measured: {seconds * 1e3:.2f} ms per step, {steps} steps in {human_seconds(steps * seconds)}; evaluations, "
        "compiling and autotuning come on top",
        "assumed  instructions: the machine code for compute capability "
        f"{architecture / 10}, followed for single threads of up to {SAMPLES} blocks; masks: the part of the ALU's "
        "instructions that draws dropout masks",
        f"         rates: {assume.CLOCK:.0%} of the boost clock, {assume.BANDWIDTH:.0%} of the bandwidth, {assume.PIPE:.0%} of an "
        f"arithmetic pipe, {assume.QUEUED:.0%} of load/store and issue slots, {assume.GEMM:.0%} of the peak in a GEMM's tiles",
        f"         times: {assume.RAMP * 1e6:g} us to start and end a kernel, {assume.GAP * 1e6:g} us between two, "
        f"{assume.MEMORY_LATENCY} clocks for a load from memory",
        "         a GEMM: cuBLASLt fuses the epilogues, at a few instructions per element (gpt/analysis/assumptions.py)",
    ]
    if by_alu:
        lines.append(f"         dropout's integer arithmetic bounds {', '.join(dict.fromkeys(by_alu))}")
    unsure = [entry.kernel for entry in estimates if entry.undecided]
    if unsure:
        lines.append(f"         a loop whose end is unknown counts once in {', '.join(dict.fromkeys(unsure))}")
    return lines


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
    params, grads, m, v = (runtime.empty((table.size,), np.float32) for _ in range(4))
    device_step, loss_ring = DeviceStep(runtime.empty((), np.int64)), runtime.empty((RING_SIZE, 2), np.float32)
    state = TrainState(table, params, grads, m, v, device_step)  # type: ignore[arg-type]
    task = Task(model, config, train, data=runtime.empty((characters,), np.uint16), seed=0)

    pool = GraphMemoryPool(runtime.block)
    with runtime.allocating(pool):
        loss, norm = train_step(instrument(ops, op_observer(runtime)), task, state)
        end = {"step": device_step.array, "loss": loss, "norm": norm, "loss_ring": loss_ring, "ring_size": RING_SIZE}
        ops.launch("optim.cu", "end_step", 1, 1, **end)  # as CapturedStep does
    del loss, norm
    return pool.nbytes
