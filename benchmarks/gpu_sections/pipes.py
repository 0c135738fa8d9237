"""Which pipes of a multiprocessor the slowest kernels fill, as Nsight Compute counts."""

import csv
import glob
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from gpt.analysis.format import Cell, table
from gpu_sections.kernels import largest_gaps_first
from gpu_sections.report import Section, said
from gpu_sections.workload import CONFIG, SCRIPT

ATTENTION = ("attention_forward", "attention_backward_query", "attention_backward_key")
WATCHED, EXPECTED = "attention_backward_key", 80  # percent of the ALU pipe's peak, as its machine code suggests
NCU_PLACES = ("/usr/local/cuda*/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
PIPE = re.compile(r"sm__(?:inst_executed_)?pipe_(\w+?)(?:_cycles_active)?\.avg\.pct_of_peak_sustained_active")
REASONS = {  # words in its output: why it cannot be used here
    "ERR_NVGPUCTRPERM": "the driver lets only administrators read performance counters (ERR_NVGPUCTRPERM)",
    "No kernels were profiled": "it profiled no kernel",
}


def ncu(section: Section) -> None:
    """Profile the attention kernels, and our three kernels with the largest gaps. What prevents it is a reason, not a failure."""
    try:
        profile = profiled(section, sorted({*ATTENTION, *largest_gaps(section.report.found, section.args.precision)}))
        section.put(rows=pipes(profile.splitlines()))
    except (OSError, RuntimeError, subprocess.SubprocessError, ValueError, KeyError) as error:
        section.put(skipped=str(error) if isinstance(error, RuntimeError) else said(error))


def largest_gaps(found: dict, precision: str) -> list[str]:
    """Return the names of our three kernels with the largest gaps; cuBLASLt's have names of their own."""
    listed = found.get("kernels", {}).get("rows", {}).get(precision, {}).get("kernels", [])
    names = [kernel["kernel"] for kernel in largest_gaps_first(listed) if "seconds" in kernel]
    return [name for name in dict.fromkeys(names) if not name.startswith("gemm")][:3]


def profiled(section: Section, kernels: list[str]) -> str:
    """Return the table of counters as CSV. Raises RuntimeError with the reason if there is none."""
    program = shutil.which("ncu") or next((path for place in NCU_PLACES for path in sorted(glob.glob(place))), None)
    if program is None:
        raise RuntimeError("ncu (Nsight Compute) is not installed")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        command = [program, "--csv", "--page", "raw", "--log-file", str(log), "--section", "ComputeWorkloadAnalysis"]
        command += ["--clock-control", "none"]  # by default ncu locks the clocks of the card
        command += ["--kernel-name", f"regex:^({'|'.join(kernels)})$", "--launch-count", str(len(kernels) * CONFIG.n_layer)]
        command += [sys.executable, str(SCRIPT), "--first-steps", "--precisions", section.args.precision]
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, section.left - 2), check=False)
        words = log.read_text(errors="replace") if log.exists() else ""
    everything = words + done.stdout + done.stderr
    for word, reason in REASONS.items():
        if word in everything:
            raise RuntimeError(reason)
    if done.returncode:
        raise RuntimeError(f"ncu ended with status {done.returncode}")
    return words


def pipes(lines: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return {kernel: {pipe: percent of its peak}}, means over the launches, of ncu's output with --csv --page raw."""
    seen: dict[str, dict[str, list[float]]] = {}
    from_header = iter(lines)
    header = next((line for line in from_header if line.startswith('"ID"')), "")
    for row in csv.DictReader([header, *from_header]):
        if not row["ID"]:  # the row of units
            continue
        for column, value in row.items():
            if column and value and (found := PIPE.fullmatch(column)):
                percent = float(value.replace(",", ""))
                seen.setdefault(row["Kernel Name"], {}).setdefault(found[1], []).append(percent)
    if not seen:
        raise RuntimeError("its output names no pipe")
    return {kernel: {pipe: statistics.mean(values) for pipe, values in own.items()} for kernel, own in seen.items()}


def show_ncu(found: dict) -> str:
    if "skipped" in found:
        return f"ncu: left out, {found['skipped']}"
    rows: list[list[Cell]] = []
    for kernel, own in found["rows"].items():
        fullest = sorted(own.items(), key=lambda item: -item[1])[:5]
        rows.append([kernel, ", ".join(f"{pipe} {percent:.0f} %" for pipe, percent in fullest)])
    title = "the fullest pipes of each kernel, in percent of their peak"
    return f"{title}\n{table(rows, ('kernel:36', 'pipes:80'))}\n{verdict(found['rows'])}"


def verdict(rows: dict[str, dict[str, float]]) -> str:
    """Return whether the ALU pipe bounds the kernel that its machine code says it bounds."""
    percent = rows.get(WATCHED, {}).get("alu")
    if percent is None:
        return f"the ALU pipe of {WATCHED} was not counted"
    return f"{WATCHED}: the ALU pipe is {percent:.0f} % full, {'above' if percent > EXPECTED else 'not above'} {EXPECTED} %"
