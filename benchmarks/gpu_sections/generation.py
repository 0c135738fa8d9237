"""Generation of 255 tokens: ours and PyTorch's, in turns."""

import statistics

from gpu_sections.implementations import of_pytorch, writers
from gpu_sections.interleaved_timing import time_interleaved
from gpu_sections.machine import version
from gpu_sections.report import Section
from gpu_sections.workload import CONFIG


def generation(section: Section) -> None:
    """Time the implementations that are here."""
    names = [name for name in writers(section.args.precision) if version("torch") or not of_pytorch(name)]
    time_interleaved(section, names, rounds=1 if section.args.quick else 2, each=CONFIG.block_size - 1)


def show_generation(found: dict) -> str:
    rows = {name: row for name, row in found["rows"].items() if row.get("seconds")}
    listed = (f"{name.partition(': ')[2]} {1 / statistics.median(row['seconds']):,.0f}" for name, row in rows.items())
    return f"tokens/s, one text of {CONFIG.block_size - 1} after one: " + "; ".join(listed)
