"""train.py --profile: the time of each op beside its FLOPs, its bytes and this machine's peaks.

Time is measured. FLOPs and bytes are counted, on shapes, from the op table; bytes are the arguments and results of an op,
each array once. An op cannot be faster than its FLOPs at the speed of a bare matmul or its bytes at the speed of a copy: the
larger of the two is its roofline (Williams, Waterman, Patterson 2009, "Roofline", CACM 52(4)).
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt.analysis.cost import FLOAT_BYTES, run_on_meta
from gpt.analysis.format import human_bytes
from gpt.analysis.instrument import Observer, instrument
from gpt.training.step import loss_and_gradients, update
from gpt.training.trainer import Trainer
from tensorlite.integers import ceil_div
from tensorlite.meta import MetaOps, cache_bytes
from tensorlite.reference.ops import ReferenceOps

TIMED_STEPS = 10
WARM_UP_STEPS = 2


@dataclass
class OpCost:
    """One op in one step."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0


OpCosts = dict[str, OpCost]


def timing_observer(costs: OpCosts, now: Callable[[], float]) -> Observer:
    """Return an observer that adds to each op its own time, without the time of the ops it calls."""
    inner = [0.0]

    def observe(name: str, _: tuple, call: Callable[[], Any]) -> Any:
        inner.append(0.0)
        start = now()
        result = call()
        spent = now() - start
        costs[name].calls += 1
        costs[name].seconds += spent - inner.pop()
        inner[-1] += spent
        return result

    return observe


def cost_observer(costs: OpCosts, ops: MetaOps, backend: type) -> Observer:
    """Return an observer of a MetaOps that adds the FLOPs and bytes of each op. What the backend fuses is counted as one op."""
    running: list[str] = []

    def observe(name: str, args: tuple, call: Callable[[], Any]) -> Any:
        composite = getattr(MetaOps, name) is getattr(ReferenceOps, name)
        one_op = not composite or getattr(backend, name) is not getattr(ReferenceOps, name)
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


def measure(trainer: Trainer) -> tuple[OpCosts, int]:
    """Return the costs of the median step of one shard on this thread, and the batch rows of that shard."""
    workers, task = trainer.workers, trainer.task
    batch_rows = range(ceil_div(task.train.batch_size, task.train.shards))
    synchronize = trainer.xp.cuda.Device().synchronize if trainer.xp.__name__ == "cupy" else lambda: None

    def now() -> float:
        synchronize()
        return time.perf_counter()

    steps = []
    for _ in range(WARM_UP_STEPS + TIMED_STEPS):
        timed: OpCosts = defaultdict(OpCost)
        ops, state = instrument(workers.ops, timing_observer(timed, now)), trainer.state.copy()
        start = now()
        loss_and_gradients(ops, task, state, batch_rows)
        ops.clip_grad_norm_(state.grads, task.train.grad_clip)
        update(ops, task, state)
        timed["in all"].seconds = now() - start
        steps.append(timed)
    steps = steps[WARM_UP_STEPS:]
    costs = {name: OpCost(cost.calls, statistics.median(step[name].seconds for step in steps)) for name, cost in steps[0].items()}
    add_costs(trainer, len(batch_rows), costs)
    return costs, len(batch_rows)


def add_costs(trainer: Trainer, n: int, costs: OpCosts) -> None:
    """Add FLOPs and bytes of a step of n batch rows: the model's counted on shapes, the optimizer's by hand."""
    counted: OpCosts = defaultdict(OpCost)
    meta = MetaOps(trainer.workers.ops.op_table)
    ops = instrument(meta, cost_observer(counted, meta, type(trainer.workers.ops)))
    run_on_meta(ops, trainer.task.config, n)
    accum_steps, size = trainer.task.train.gradient_accumulation_steps, trainer.state.table.size
    for name, cost in counted.items():
        costs[name].flops, costs[name].bytes = cost.flops * accum_steps, cost.bytes * accum_steps
    costs["pack_grads"].bytes = 2 * FLOAT_BYTES * size * accum_steps
    costs["clip_grad_norm_"].flops, costs["clip_grad_norm_"].bytes = 2 * size, FLOAT_BYTES * size
    costs["adamw_"].flops, costs["adamw_"].bytes = 14 * size, 7 * FLOAT_BYTES * size


def measure_peaks(trainer: Trainer, n: int) -> tuple[float, float]:
    """Return the FLOP/s of the model's widest matmul, and the bytes/s (read and written) of copying an array beyond any cache."""
    xp, C = trainer.xp, trainer.task.config.n_embd
    x, w = xp.ones((n * trainer.task.config.block_size, C), "float32"), xp.ones((C, 4 * C), "float32")
    big = xp.ones(1 << 26, "float32")
    target = xp.empty_like(big)

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            float(work())  # reading a value waits for a GPU
            times.append(time.perf_counter() - start)
        return min(times)

    def copy_big() -> Any:
        target[...] = big
        return target[0]

    matmul_s, copy_s = best(lambda: sum((x @ w)[0, 0] for _ in range(10))) / 10, best(copy_big)
    return 2 * x.size * 4 * C / matmul_s, 2 * big.nbytes / copy_s


def profile(trainer: Trainer) -> str:
    """The table that `train.py --profile` prints."""
    costs, n = measure(trainer)
    peak, bandwidth = measure_peaks(trainer, n)
    whole = costs.pop("in all").seconds
    in_ops = sum(cost.seconds for cost in costs.values())
    lines = [
        f"a step of {n} rows on one thread: {whole * 1e3:.1f} ms, median of {TIMED_STEPS}; peaks measured here: matmuls "
        f"{peak / 1e9:.0f} GFLOP/s, copies {bandwidth / 1e9:.1f} GB/s",
        "% of roofline: the least time that these FLOPs or bytes can take at the peaks, over the time taken; above 100 % the",
        "arrays were still in a cache, which is faster than the memory that the peak is of",
        f"{'op':32}{'calls':>6}{'ms':>9}{'%':>7}{'bytes':>11}{'GB/s':>8}{'GFLOP/s':>9}{'% of roofline':>15}",
    ]
    for name, cost in sorted(costs.items(), key=lambda item: -item[1].seconds):
        if cost.seconds < whole / 1000:
            continue
        roofline = max(cost.flops / peak, cost.bytes / bandwidth)
        rates = f"{cost.bytes / cost.seconds / 1e9:8.1f}{cost.flops / cost.seconds / 1e9:9.1f}{100 * roofline / cost.seconds:15.0f}"
        counted = f"{human_bytes(cost.bytes):>11}{rates}" if cost.bytes else ""
        lines.append(f"{name:32}{cost.calls:6}{cost.seconds * 1e3:9.2f}{100 * cost.seconds / whole:7.1f}{counted}")
    lines.append(f"{'between the ops':32}{'':6}{(whole - in_ops) * 1e3:9.2f}{100 * (whole - in_ops) / whole:7.1f}")
    return "\n".join(lines)
