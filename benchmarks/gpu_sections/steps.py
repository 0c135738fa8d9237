"""A training step: the reference, each precision op by op and as one graph, and PyTorch, in turns."""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from gpt.analysis.format import Cell, table
from gpu_sections.implementations import FAIR, GRAPH, PLAIN, TORCH, TUNED, of_pytorch
from gpu_sections.interleaved_timing import RESERVED, time_interleaved
from gpu_sections.machine import version
from gpu_sections.report import MIN_SECONDS, Section
from gpu_sections.workload import TOKENS

MEMORY_OF_EACH = 5 << 30  # bytes that an implementation may take, its context included


def steps(section: Section) -> None:
    """Time the implementations in groups that the card's memory holds together. Those of a group take turns."""
    torch = [name for name in TORCH if section.args.max_autotune or name != TUNED]
    if section.args.quick:
        torch = ["PyTorch eager"]
    if not version("torch"):
        section.fail("PyTorch", "not installed: pip install torch")
        torch = []
    memory = section.report.found.get("machine", {}).get("memory_bytes", 0)
    together = max(2, memory // MEMORY_OF_EACH)
    names = most_wanted_first(section.args.precisions, torch)
    for first in range(0, len(names), together):
        group = names[first : first + together]
        if section.left < RESERVED + MIN_SECONDS:
            section.fail(", ".join(group), f"left out: {section.left:.0f} s were left")
        else:
            time_interleaved(section, group, rounds=2 if section.args.quick else 5)


def most_wanted_first(precisions: Sequence[str], torch: Sequence[str]) -> list[str]:
    """Return the implementations in the order in which they are timed, if there is time and memory for some alone."""
    best, *others = precisions
    fair = [name for name in FAIR if name in torch]
    rest = [name for name in torch if name not in fair]
    later = [form.format(precision) for precision in others for form in (GRAPH, PLAIN)]
    return [GRAPH.format(best), *fair, PLAIN.format(best), *rest, "reference", *later]


def fair(rows: Mapping[str, dict]) -> tuple[str, float]:
    """Return the fastest of PyTorch's captured steps, or of all its steps if none was captured, and its seconds."""
    found = {name: median_step(rows, name) for name, row in rows.items() if row.get("seconds") and of_pytorch(name)}
    best = {name: seconds for name, seconds in found.items() if name in FAIR} or found
    name = min(best, key=lambda name: best[name], default="")
    return name, best.get(name, math.nan)


def median_step(rows: Mapping[str, dict], name: str) -> float:
    """Return the median seconds of a step, NaN if it was not timed."""
    return statistics.median(rows.get(name, {}).get("seconds") or [math.nan])


COLUMNS = (":34", "ms:>9.2f", "10 to 90 %:>18", "tokens/s:>12,.0f", "MiB:>8,.0f", "x fair:>9.2f")


def show_steps(found: dict) -> str:
    baseline, least = fair(found["rows"])
    rows: list[list[Cell]] = []
    for name, row in found["rows"].items():
        if row.get("seconds"):
            median = statistics.median(row["seconds"])
            low, high = np.quantile(row["seconds"], [0.1, 0.9])
            spread = f"{low * 1e3:.2f} to {high * 1e3:.2f}"
            rows.append([name, median * 1e3, spread, TOKENS / median, row["memory"]["reserved"] / 2**20, least / median])
    title = f"a training step of {TOKENS} tokens; x fair: how many times as fast as {baseline or 'PyTorch, which was not timed'}"
    return f"{title}\n{table(rows, COLUMNS)}"
