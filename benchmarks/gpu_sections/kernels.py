"""What each kernel of a step takes, beside its bytes and FLOPs at the ceilings."""

import statistics
from collections.abc import Mapping
from typing import Any

from gpt.analysis import dry_run
from gpt.analysis.format import Cell, table
from gpt.config import ModelConfig, TrainConfig
from gpu_sections.kernel_timer import KernelTimer, timed_steps
from gpu_sections.report import Section
from gpu_sections.workload import CONFIG, TRAIN, fast, text
from tensorlite.cuda.ops import PRECISIONS


def kernels(section: Section) -> None:
    runtime = fast("bf16").runtime
    xp, data = runtime.xp, text(runtime.xp)
    ceilings = section.report.found.get("machine", {}).get("ceilings", {})
    if len(ceilings) < 4:  # the datasheet's where it was not measured
        peaks = dry_run.GPUS[dry_run.lookup_gpu(runtime.name)]
        ceilings = {name: getattr(peaks, name) * 1e12 for name in PRECISIONS} | {"copy": peaks.bandwidth * 1e9} | ceilings

    def cover(seconds: float) -> None:
        runtime.launch("spin.cu", "spin", 1, 1, clocks=int(seconds * 2e9))  # clocks of a GPU of 2 GHz

    def mark() -> Any:
        event = xp.cuda.Event()
        event.record()
        return event

    def between(start: Any, end: Any) -> float:
        return xp.cuda.get_elapsed_time(start, end) / 1e3

    cover(0.005)
    pairs = [(mark(), mark()) for _ in range(100)]
    runtime.synchronize()
    section.put(event=statistics.median(between(*pair) for pair in pairs))
    for precision in ("bf16",) if section.args.quick else ("bf16", "tf32"):
        with section.attempt(precision):
            kernel_timer = KernelTimer(runtime, mark, between)
            seconds, host = timed_steps(kernel_timer, precision, CONFIG, TRAIN, data, 3 if section.args.quick else 10, cover)
            costs = step_costs(precision, CONFIG, TRAIN, len(data))
            slowest_first = sorted(seconds.items(), key=lambda item: -item[1])
            listed = [entry(key, taken, costs.get(key), ceilings, precision) for key, taken in slowest_first]
            section.row(precision, kernels=listed, host=host)


def step_costs(precision: str, config: ModelConfig, train: TrainConfig, characters: int) -> dict[tuple[str, str], Any]:
    """Calls, FLOPs and bytes of the same step, by the same keys."""
    ops = fast(precision, dry_run.DryRunRuntime())
    dry_run.trace_step(ops, config, train, characters)
    return ops.runtime.costs


def roofline(kernel: str, cost: Any, ceilings: Mapping[str, float], precision: str) -> float:
    """The least seconds for a cost of `step_costs` at the ceilings. Attention is on the tensor cores in bf16 alone."""
    matrix = kernel.startswith(("gemm", "attention") if precision == "bf16" else "gemm")
    return max(cost.flops / ceilings[precision if matrix else "float32"], cost.bytes / ceilings["copy"])


def entry(key: tuple[str, str], seconds: float, cost: Any, ceilings: Mapping[str, float], precision: str) -> dict[str, Any]:
    """A kernel for gpu.json; of one that is not counted, its time alone."""
    op, kernel = key
    found = {"op": op, "kernel": kernel, "seconds": seconds}
    if cost is None:
        return found
    least = roofline(kernel, cost, ceilings, precision)
    return found | {"calls": cost.calls, "flops": cost.flops, "bytes": cost.bytes, "roofline": least}


COLUMNS = ("op:32", "kernel:44", "calls:>6", "us:>9.1f", "% of time:>11.1f", "MiB:>8.0f", "GFLOP:>8.1f", "% of roofline:>15.0f")


def show_kernels(found: dict) -> str:
    lines = []
    for precision, row in found["rows"].items():
        total = sum(k["seconds"] for k in row["kernels"])
        least = sum(k.get("roofline", 0.0) for k in row["kernels"])
        listed = [k for k in row["kernels"] if k["seconds"] >= total / 200 and "calls" in k]
        lines += [
            f"kernels of a step in {precision}: {total * 1e3:.2f} ms in total, {least * 1e3:.2f} ms at the ceilings; the host "
            f"launches them in {row['host'] * 1e3:.1f} ms; each call includes {found['event'] * 1e6:.1f} us of an event",
            table([kernel_row(k, total) for k in listed], COLUMNS),
        ]
    return "\n".join(lines)


def kernel_row(k: dict[str, Any], total: float) -> list[Cell]:
    """Return the cells of a kernel. total: seconds of all kernels."""
    times = [k["seconds"] * 1e6, 100 * k["seconds"] / total]
    return [k["op"], k["kernel"], k["calls"], *times, k["bytes"] / 2**20, k["flops"] / 1e9, 100 * k["roofline"] / k["seconds"]]


def short_kernels(found: dict) -> str:
    row = found["rows"]["bf16"]
    total, least = (sum(k.get(what, 0.0) for k in row["kernels"]) for what in ("seconds", "roofline"))
    slowest = ", ".join(f"{k['kernel'].split(' +')[0]} {k['seconds'] * 1e6:.0f} us" for k in row["kernels"][:4])
    return f"{total * 1e3:.2f} ms, {100 * least / total:.0f} % of the roofline; most: {slowest}"
