"""Where the time of a step goes: each op's time beside what it must compute and move, and beside what this machine can do.

Time is measured. FLOPs and bytes are counted, on shapes, from the op table; bytes are the arrays that an op is given and gives
back, each once. An op cannot be faster than its FLOPs at the speed of a bare matrix product or its bytes at the speed of a copy:
the larger of the two is its floor (Williams, Waterman, Patterson 2009, "Roofline", CACM 52(4)).
"""

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt.analysis.cost import FLOAT, human_bytes, run_on_shapes
from gpt.training.step import loss_and_gradients, update
from gpt.training.trainer import Trainer
from tensorlite.meta import MetaOps, cache_bytes
from tensorlite.reference.ops import ReferenceOps

STEPS = 10
OPTIMIZER = ("get_batch", "pack_grads", "clip_grad_norm_", "adamw_")


@dataclass
class Row:
    """One op in one step."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0


Rows = dict[str, Row]


def instrument(ops: Any, observe: Callable[[str, tuple, Callable[[], Any]], Any]) -> Any:
    """A copy of a backend that passes each call of an op through observe(name, arguments, call)."""

    def watched(name: str) -> Callable:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            call = getattr(super(cls, self), name)
            return observe(name, (*args, *kwargs.values()), lambda: call(*args, **kwargs))

        return method

    names = [n for n in dir(ops) if n.endswith(("_forward", "_backward")) or n in ("add", *OPTIMIZER)]
    cls = type("Watched", (type(ops),), {name: watched(name) for name in names})
    twin = copy.copy(ops)
    twin.__class__ = cls
    return twin


def timing_observer(rows: Rows, now: Callable[[], float]) -> Callable:
    """An observer that adds to each op its own time, that of the ops it calls left out."""
    inner = [0.0]

    def observe(name: str, _: tuple, call: Callable[[], Any]) -> Any:
        inner.append(0.0)
        start = now()
        result = call()
        spent = now() - start
        rows[name].calls += 1
        rows[name].seconds += spent - inner.pop()
        inner[-1] += spent
        return result

    return observe


def cost_observer(rows: Rows, ops: MetaOps, backend: type) -> Callable:
    """An observer on shapes that adds each op's FLOPs and bytes. What the backend does in one piece is counted in one piece."""
    within: list[str] = []

    def observe(name: str, args: tuple, call: Callable[[], Any]) -> Any:
        composite = getattr(MetaOps, name) is getattr(ReferenceOps, name)
        one_piece = not composite or getattr(backend, name) is not getattr(ReferenceOps, name)
        if within or not one_piece:
            return call()
        within.append(name)
        before = sum(ops.flops.values())
        result = call()
        within.pop()
        rows[name].flops += sum(ops.flops.values()) - before
        rows[name].bytes += cache_bytes([list(args), result])
        return result

    return observe


def measure(trainer: Trainer) -> tuple[Rows, int]:
    """Rows of the median step of one shard, on the thread that asks; and the shard's rows of the batch."""
    workers, config, train = trainer.workers, trainer.model_config, trainer.train_config
    rows = range(-(-train.batch_size // train.shards))
    synchronize = trainer.xp.cuda.Device().synchronize if trainer.xp.__name__ == "cupy" else lambda: None

    def now() -> float:
        synchronize()
        return time.perf_counter()

    steps = []
    for _ in range(STEPS + 2):
        timed: Rows = defaultdict(Row)
        ops, state = instrument(workers.ops, timing_observer(timed, now)), trainer.state.copy()
        start = now()
        loss_and_gradients(ops, trainer.model, state, trainer.train_data, config, train, trainer.seed, rows)
        ops.clip_grad_norm_(state.grads, train.grad_clip)
        update(ops, state, train)
        timed["in all"].seconds = now() - start
        steps.append(timed)
    steps = steps[2:]  # the first ones warm up
    result = {name: Row(row.calls, statistics.median(step[name].seconds for step in steps)) for name, row in steps[0].items()}
    add_costs(trainer, len(rows), result)
    return result, len(rows)


def add_costs(trainer: Trainer, n: int, rows: Rows) -> None:
    """FLOPs and bytes: the model's from shapes, the optimizer's from what adamw_ says it does."""
    counted: Rows = defaultdict(Row)
    shapes = MetaOps(trainer.workers.ops.op_table)
    ops = instrument(shapes, cost_observer(counted, shapes, type(trainer.workers.ops)))
    run_on_shapes(ops, trainer.model_config, n)
    micros, size = trainer.train_config.gradient_accumulation_steps, trainer.state.table.size
    for name, row in counted.items():
        rows[name].flops, rows[name].bytes = row.flops * micros, row.bytes * micros
    rows["pack_grads"].bytes = 2 * FLOAT * size * micros
    rows["clip_grad_norm_"].flops, rows["clip_grad_norm_"].bytes = 2 * size, FLOAT * size
    rows["adamw_"].flops, rows["adamw_"].bytes = 14 * size, 7 * FLOAT * size


def measure_peaks(trainer: Trainer, n: int) -> tuple[float, float]:
    """FLOP/s of the model's widest matrix product, and bytes/s of copying an array larger than any cache (read and written)."""
    xp, C = trainer.xp, trainer.model_config.n_embd
    x, w = xp.ones((n * trainer.model_config.block_size, C), "float32"), xp.ones((C, 4 * C), "float32")
    big = xp.ones(1 << 26, "float32")
    target = xp.empty_like(big)

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            float(work())  # reading a number waits for a GPU
            times.append(time.perf_counter() - start)
        return min(times)

    def copy_big() -> Any:
        target[...] = big
        return target[0]

    product, copying = best(lambda: sum((x @ w)[0, 0] for _ in range(10))) / 10, best(copy_big)
    return 2 * x.size * 4 * C / product, 2 * big.nbytes / copying


def profile(trainer: Trainer) -> str:
    """The table that `train.py --profile` prints."""
    rows, n = measure(trainer)
    peak, bandwidth = measure_peaks(trainer, n)
    whole = rows.pop("in all").seconds
    named = sum(row.seconds for row in rows.values())
    lines = [
        f"a step of {n} rows on one thread: {whole * 1e3:.1f} ms, median of {STEPS}; ceilings measured here: products "
        f"{peak / 1e9:.0f} GFLOP/s, copies {bandwidth / 1e9:.1f} GB/s",
        "of floor: the least time that these FLOPs or bytes can take at the ceilings, over the time taken; above 100 % the",
        "arrays were still in a cache, which is faster than the memory that the ceiling is of",
        f"{'op':26}{'calls':>6}{'ms':>9}{'share':>8}{'bytes':>11}{'GB/s':>8}{'GFLOP/s':>9}{'of floor':>10}",
    ]
    for name, row in sorted(rows.items(), key=lambda item: -item[1].seconds):
        if row.seconds < whole / 1000:
            continue
        floor = max(row.flops / peak, row.bytes / bandwidth) / row.seconds
        numbers = f"{row.bytes / row.seconds / 1e9:8.1f}{row.flops / row.seconds / 1e9:9.1f}{100 * floor:8.0f} %"
        counted = f"{human_bytes(row.bytes):>11}{numbers}" if row.bytes else ""
        lines.append(f"{name:26}{row.calls:6}{row.seconds * 1e3:9.2f}{100 * row.seconds / whole:6.1f} %{counted}")
    lines.append(f"{'between the ops':26}{'':6}{(whole - named) * 1e3:9.2f}{100 * (whole - named) / whole:6.1f} %")
    return "\n".join(lines)
