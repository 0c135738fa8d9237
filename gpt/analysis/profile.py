"""train.py --profile: the time of each op beside its FLOPs, its bytes and this machine's peaks.

Times are measured. FLOPs and bytes are counted on shapes, from the op table. The bytes of an op are those of its arguments and
results, each array once. An op takes at least its FLOPs at the rate of a bare matmul, and at least its bytes at the rate of a copy.
The larger of the two times is its roofline (Williams, Waterman, Patterson 2009, "Roofline", CACM 52(4)).
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpt.analysis.cost import FLOAT_BYTES, run_on_meta
from gpt.analysis.format import Cell, human_bytes, table
from gpt.analysis.instrument import Observer, instrument
from gpt.training.step import loss_and_gradients, update
from gpt.training.trainer import Trainer
from tensorlite import Array
from tensorlite.integers import ceil_div
from tensorlite.meta import MetaOps, cache_bytes
from tensorlite.reference.ops import ReferenceOps

TIMED_STEPS = 10
WARM_UP_STEPS = 2
COLUMNS = ("op:32", "calls:>6", "ms:>9.2f", "%:>7.1f", "bytes:>11", "GB/s:>8.1f", "GFLOP/s:>9.1f", "% of roofline:>15.0f")


@dataclass
class OpCost:
    """The cost of all calls of one op in one step."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0


OpCosts = dict[str, OpCost]


class StepCosts(NamedTuple):
    """The costs of one shard's step on one thread."""

    ops: OpCosts
    seconds: float  # of the whole step
    batch_rows: int


class Peaks(NamedTuple):
    """What this machine reaches at most."""

    flops: float  # FLOP/s of a bare matmul
    bandwidth: float  # bytes/s of a copy, read and written


def timing_observer(costs: OpCosts, now: Callable[[], float]) -> Observer:
    """Return an observer that adds to each op its own time, without the time of the ops it calls."""
    inner_seconds = [0.0]  # a stack: the time spent in the ops that each running op has called

    def observe(name: str, _: tuple, call: Callable[[], Any]) -> Any:
        inner_seconds.append(0.0)
        start = now()
        result = call()
        spent = now() - start
        costs[name].calls += 1
        costs[name].seconds += spent - inner_seconds.pop()
        inner_seconds[-1] += spent
        return result

    return observe


def cost_observer(costs: OpCosts, ops: MetaOps, backend: type) -> Observer:
    """Return an observer of a MetaOps that adds the FLOPs and bytes of each op. A composite that `backend` fuses is one op."""
    running: list[str] = []

    def observe(name: str, args: tuple, call: Callable[[], Any]) -> Any:
        is_composite = getattr(MetaOps, name) is getattr(ReferenceOps, name)
        is_fused = getattr(backend, name) is not getattr(ReferenceOps, name)
        one_op = is_fused or not is_composite
        if running or not one_op:
            return call()
        running.append(name)
        before = sum(ops.flops.values())
        result = call()
        running.pop()
        costs[name].flops += sum(ops.flops.values()) - before
        costs[name].bytes += cache_bytes([list(args), result])
        return result

    return observe


def measure(trainer: Trainer) -> StepCosts:
    """Time one shard's step on this thread, and return the median of each op's times with its FLOPs and bytes."""
    task = trainer.task
    batch_rows = range(ceil_div(task.train.batch_size, task.train.shards))

    def now() -> float:
        if trainer.xp.__name__ == "cupy":
            trainer.xp.cuda.Device().synchronize()
        return time.perf_counter()

    steps: list[OpCosts] = []
    seconds: list[float] = []
    for _ in range(WARM_UP_STEPS + TIMED_STEPS):
        timed: OpCosts = defaultdict(OpCost)
        ops = instrument(trainer.workers.ops, timing_observer(timed, now))
        state = trainer.state.copy()
        start = now()
        loss_and_gradients(ops, task, state, batch_rows)
        ops.clip_grad_norm_(state.grads, task.train.grad_clip)
        update(ops, task, state)
        seconds.append(now() - start)
        steps.append(timed)

    costs: OpCosts = {}
    for name, cost in steps[0].items():
        median = statistics.median(step[name].seconds for step in steps[WARM_UP_STEPS:])
        costs[name] = OpCost(calls=cost.calls, seconds=median)
    add_costs(trainer, len(batch_rows), costs)
    return StepCosts(costs, statistics.median(seconds[WARM_UP_STEPS:]), len(batch_rows))


def add_costs(trainer: Trainer, batch_rows: int, costs: OpCosts) -> None:
    """Add the FLOPs and bytes of a step: the model's are counted on shapes, the optimizer's are written down here."""
    counted: OpCosts = defaultdict(OpCost)
    meta = MetaOps(trainer.workers.ops.op_table)
    run_on_meta(instrument(meta, cost_observer(counted, meta, type(trainer.workers.ops))), trainer.task.config, batch_rows)
    accum_steps = trainer.task.train.gradient_accumulation_steps
    for name, cost in counted.items():
        costs[name].flops = cost.flops * accum_steps
        costs[name].bytes = cost.bytes * accum_steps

    size = trainer.state.table.size
    costs["pack_grads"].bytes = 2 * FLOAT_BYTES * size * accum_steps
    costs["clip_grad_norm_"].bytes = FLOAT_BYTES * size
    costs["clip_grad_norm_"].flops = 2 * size
    costs["adamw_"].bytes = 7 * FLOAT_BYTES * size
    costs["adamw_"].flops = 14 * size


def measure_peaks(trainer: Trainer, batch_rows: int) -> Peaks:
    """Time the model's widest matmul, and a copy of an array that no cache holds."""
    xp, C = trainer.xp, trainer.task.config.n_embd
    x = xp.ones((batch_rows * trainer.task.config.block_size, C), "float32")
    w = xp.ones((C, 4 * C), "float32")
    source = xp.ones(1 << 26, "float32")
    target = xp.empty_like(source)

    def ten_matmuls() -> Array:
        return sum((x @ w)[0, 0] for _ in range(10))

    def copy() -> Array:
        target[...] = source
        return target[0]

    def fastest(work: Callable[[], Array]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            float(work())  # reading a value waits for a GPU
            times.append(time.perf_counter() - start)
        return min(times)

    matmul_flops = 2 * x.size * 4 * C
    return Peaks(flops=10 * matmul_flops / fastest(ten_matmuls), bandwidth=2 * source.nbytes / fastest(copy))


def profile(trainer: Trainer) -> str:
    """Return the table that `train.py --profile` prints."""
    step = measure(trainer)
    peaks = measure_peaks(trainer, step.batch_rows)
    slowest_first = sorted(step.ops.items(), key=lambda item: -item[1].seconds)
    rows = [_row(name, cost, step, peaks) for name, cost in slowest_first if cost.seconds >= step.seconds / 1000]
    between_ops = OpCost(seconds=step.seconds - sum(cost.seconds for cost in step.ops.values()))
    return "\n".join(
        [
            f"a step of {step.batch_rows} rows on one thread: {step.seconds * 1e3:.1f} ms, median of {TIMED_STEPS}; peaks measured "
            f"here: matmuls {peaks.flops / 1e9:.0f} GFLOP/s, copies {peaks.bandwidth / 1e9:.1f} GB/s",
            "% of roofline = ideal time / measured time. The ideal time is that of the FLOPs or bytes at the peaks.",
            "Values above 100 % mean that the data was still in a cache.",
            table([*rows, _row("between the ops", between_ops, step, peaks)], COLUMNS),
        ]
    )


def _row(name: str, cost: OpCost, step: StepCosts, peaks: Peaks) -> list[Cell]:
    row: list[Cell] = [name, cost.calls or None, cost.seconds * 1e3, 100 * cost.seconds / step.seconds]
    if cost.bytes:
        roofline = max(cost.flops / peaks.flops, cost.bytes / peaks.bandwidth)
        gigabytes_per_s = cost.bytes / cost.seconds / 1e9
        gigaflops_per_s = cost.flops / cost.seconds / 1e9
        row += [human_bytes(cost.bytes), gigabytes_per_s, gigaflops_per_s, 100 * roofline / cost.seconds]
    return row
