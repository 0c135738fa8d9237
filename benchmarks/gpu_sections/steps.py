"""A training step: the reference, each precision op by op and as one graph, and PyTorch; taking turns."""

import math
import statistics
from collections.abc import Mapping

import numpy as np

from gpt.analysis.format import Cell, table
from gpu_sections.implementations import FAIR, GRAPH, OURS, PLAIN, TORCH, of_pytorch
from gpu_sections.interleaved_timing import time_interleaved
from gpu_sections.machine import version
from gpu_sections.report import Section
from gpu_sections.workload import CONFIG, TRAIN


def steps(section: Section) -> None:
    """All take turns on one card; one of less than 40 GB cannot hold them all at once, so there two groups do."""
    torch = TORCH[:1] if section.args.quick else TORCH if section.args.max_autotune else TORCH[:-1]
    if not version("torch"):
        section.fail("PyTorch", "not installed: pip install torch")
        torch = ()
    names = [*OURS, *torch]
    memory = section.report.found.get("machine", {}).get("memory_bytes", 0)
    second = [] if memory > 40 << 30 else ["reference", PLAIN.format("float32"), PLAIN.format("tf32"), GRAPH.format("float32")]
    for group in ([name for name in names if name not in second], second):
        if group:
            time_interleaved(section, group, rounds=2 if section.args.quick else 5)


def fair(rows: Mapping[str, dict]) -> tuple[str, float]:
    """The fastest of PyTorch's captured steps, or of what there is of PyTorch; its seconds."""
    found = {name: statistics.median(row["seconds"]) for name, row in rows.items() if row.get("seconds") and of_pytorch(name)}
    best = {name: seconds for name, seconds in found.items() if name in FAIR} or found
    name = min(best, key=lambda name: best[name], default="")
    return name, best.get(name, math.nan)


COLUMNS = (":34", "ms:>9.2f", "10 to 90 %:>18", "tokens/s:>12,.0f", "MiB:>8,.0f", "x fair:>9.2f")


def show_steps(found: dict) -> str:
    baseline, least = fair(found["rows"])
    tokens = TRAIN.batch_size * CONFIG.block_size
    rows: list[list[Cell]] = []
    for name, row in found["rows"].items():
        if row.get("seconds"):
            median = statistics.median(row["seconds"])
            low, high = np.quantile(row["seconds"], [0.1, 0.9])
            spread = f"{low * 1e3:.2f} to {high * 1e3:.2f}"
            rows.append([name, median * 1e3, spread, tokens / median, row["memory"]["reserved"] / 2**20, least / median])
    title = f"a training step of {tokens} tokens; x fair: how many times as fast as {baseline or 'PyTorch, which is not here'}"
    return f"{title}\n{table(rows, COLUMNS)}"
