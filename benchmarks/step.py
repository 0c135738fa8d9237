"""Time a training step of a preset on this machine, beside the matrix products alone that it contains.

    python benchmarks/step.py [--preset laptop] [--batch-size 8] [--steps 20] [--device cpu|cuda]

Prints the median and the spread of a step, its FLOP/s, the FLOP/s of bare products of the same shapes, and the share of a step
spent on dropout masks.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from gpt.config import PRESETS, override
from gpt.estimate import count
from gpt.params import ParamTable
from gpt.stages import MODELS
from gpt.step import TrainState, train_step
from tensorlite import Reference, pick_device
from tensorlite.random import keep_mask, make_key


@dataclass
class Args:
    """Time a training step."""

    preset: str = "laptop"
    batch_size: int | None = None
    steps: int = 20
    device: str = "auto"


def timed(work: Callable[[], Any], n: int) -> list[float]:
    """Seconds of each of n calls, after two that warm up."""
    work(), work()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Measure and print."""
    args = tyro.cli(Args)
    device = pick_device(args.device)
    xp, preset = device.xp, PRESETS[args.preset]
    config, train = preset.model, override(preset.train, {"batch_size": args.batch_size} if args.batch_size else {})
    model, ops = MODELS[config.model], Reference(check=False)
    table = ParamTable(model.init(config))
    state = TrainState.start(table, table.initial(0), xp)
    data = xp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, 100_000))

    def step() -> None:
        loss, _ = train_step(ops, model, state, data, config, train, 0)
        float(loss)  # waits for a GPU

    times = timed(step, args.steps)
    median = statistics.median(times)
    cost = count(config, train)
    tokens = train.batch_size * config.block_size
    print(f"{args.preset}, batch {train.batch_size}, {device.name} ({device.description}), reference backend")
    print(f"step       {median * 1e3:9.1f} ms   {min(times) * 1e3:.1f} to {max(times) * 1e3:.1f} over {args.steps} steps")
    print(f"speed      {tokens / median:9.0f} tokens/s   {cost.flops / median / 1e9:.0f} GFLOP/s")

    N, C = tokens, config.n_embd
    a, b = (xp.asarray(np.random.default_rng(0).standard_normal(s).astype(np.float32)) for s in ((N, C), (C, 4 * C)))
    product = statistics.median(timed(lambda: float((a @ b)[0, 0]), args.steps))
    print(f"bare GEMM  {2 * N * C * 4 * C / product / 1e9:9.0f} GFLOP/s on ({N}, {C}) @ ({C}, {4 * C}), float32")

    if config.dropout:
        B, T, H = train.batch_size, config.block_size, config.n_head
        shapes = [(B, H, T, T), (B, T, C), (B, T, C)] * config.n_layer
        key = make_key(0, 0)
        masks = statistics.median(timed(lambda: [keep_mask(xp, key, s, config.dropout) for s in shapes], 3))
        print(f"masks      {masks * 1e3:9.1f} ms   {100 * masks / median:.1f} % of a step")


if __name__ == "__main__":
    main()
