"""What a step on a GPU is made of, said without one: each op's kernels, what they compute and move, and its roofline.

The real backend runs on a runtime that only counts (tensorlite/cuda/counting.py). Each kernel is charged its FLOPs at the GPU's
peak or its arrays, each once, at the memory's bandwidth, datasheet figures both: the larger is its roofline (Williams, Waterman,
Patterson 2009). A run is slower, since no kernel reaches either, but for what the cache still holds of the kernel before.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.errors import ConfigError
from gpt.estimate import human_bytes
from gpt.params import ParamTable
from gpt.profile import watch
from gpt.stages import MODELS
from gpt.step import TrainState, train_step
from tensorlite.cuda import Ops
from tensorlite.cuda.arena import Arena
from tensorlite.cuda.attention import on_tensor_cores
from tensorlite.cuda.counting import Counting
from tensorlite.cuda.graph import SLOTS
from tensorlite.cuda.ops import Precision
from tensorlite.cuda.random import Counter


@dataclass(frozen=True)
class Gpu:
    """Datasheet figures, of the SXM card where there are several: dense TFLOP/s with sums in float32, and GB/s."""

    bf16: float
    tf32: float
    float32: float
    bandwidth: float


GPUS = {
    "A100": Gpu(312, 156, 19.5, 2039),
    "H100": Gpu(989, 495, 67, 3350),
    "H200": Gpu(989, 495, 67, 4800),
    "B200": Gpu(2250, 1125, 75, 8000),
    "L4": Gpu(121, 60, 30.3, 300),
    "L40S": Gpu(362, 183, 91.6, 864),
    "RTX 3090": Gpu(71, 35.6, 35.6, 936),
    "RTX 4090": Gpu(165, 82.6, 82.6, 1008),
    "RTX 5090": Gpu(210, 105, 105, 1792),
}


def named(gpu: str) -> str:
    """The entry of GPUS that a name means, "NVIDIA H200" too. Raises ConfigError for one that is not known."""

    def pattern(known: str) -> str:
        return rf"(?<![a-z0-9]){known.lower().replace(' ', ' *')}(?![a-z0-9])"

    found = [known for known in GPUS if re.search(pattern(known), gpu.lower())]
    if not found:
        raise ConfigError(f"gpu {gpu!r} is not known; one of {', '.join(GPUS)}")
    return max(found, key=len)


def step_plan(config: ModelConfig, train: TrainConfig, precision: Precision, characters: int, gpu: str) -> str:
    """The table that `train.py --dry-run` prints."""
    runtime = Counting()
    ops = Ops(precision, check=False, runtime=runtime)
    memory = count(ops, config, train, characters)
    name = named(gpu)
    peaks = GPUS[name]
    on_cores, why = on_tensor_cores(ops, config.head_size, config.block_size, config.dropout > 0)
    lines = [
        f"a step on one {name} in {precision}: {getattr(peaks, precision)} TFLOP/s, {peaks.bandwidth} GB/s (datasheet); "
        f"attention: {why if on_cores else f'without tensor cores, {why}'}",
        f"{'op':24}{'kernel':52}{'calls':>6}{'GFLOP':>9}{'bytes':>11}{'roofline, us':>14}  bound by",
    ]
    total = 0.0
    for (op, kernel), row in runtime.rows.items():
        matrix = kernel.startswith("product") or (on_cores and kernel.startswith("attention"))
        arithmetic = row.flops / (getattr(peaks, precision) if matrix else peaks.float32) / 1e6
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


def noting_ops(runtime: Any) -> Callable:
    """For gpt.profile.watch: tells the runtime which op is running, the outermost of several."""

    def observe(name: str, _: tuple, call: Callable[[], Any]) -> Any:
        before, runtime.op = runtime.op, runtime.op or name
        try:
            return call()
        finally:
            runtime.op = before

    return observe


def count(ops: Ops, config: ModelConfig, train: TrainConfig, characters: int) -> int:
    """Fill the runtime's rows with a step; return the bytes that its graph would reserve."""
    runtime, model = ops.runtime, MODELS[config.model]
    table = ParamTable(model.init(config))
    params, grads, m, v = (np.empty(table.size, np.float32) for _ in range(4))
    counter = Counter(np.empty((), np.int64))
    state = TrainState(table, params, grads, m, v, counter)  # type: ignore[arg-type]
    data = np.empty(characters, np.uint16)

    arena = Arena(runtime.block)
    with runtime.allocating(arena):
        loss, norm = train_step(watch(ops, noting_ops(runtime)), model, state, data, config, train, 0)
        ring = np.empty((SLOTS, 2), np.float32)
        ops.launch("optim.cu", "end_step", 1, 1, counter.array, loss, norm, ring, SLOTS)  # as Captured does
    del loss, norm
    return arena.nbytes
