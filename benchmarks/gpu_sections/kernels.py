"""What each kernel of a step takes, beside its counted time and its roofline, the largest gaps first."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpt.analysis import dry_run
from gpt.analysis.format import Cell, table
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import ConfigError
from gpu_sections.kernel_timer import KernelTimer, timed_steps
from gpu_sections.report import Section, said
from gpu_sections.timing import us
from gpu_sections.workload import CONFIG, TRAIN, fast, text

RESERVED = 5.0  # seconds in which a kernel is counted
Key = tuple[str, str]  # (op, kernel), as in tensorlite/cuda/runtime/dry_run.py


def kernels(section: Section) -> None:
    """Time the kernels of a step in the best precision and in tf32, if the card has it."""
    precisions = [section.args.precision, *({"tf32"} & set(section.args.precisions[1:]))]
    runtime = fast(precisions[0]).runtime
    xp, data = runtime.xp, text(runtime.xp)
    ceilings = ceilings_of(section, runtime.name, precisions)
    steps = 3 if section.args.quick else 10

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
    event = statistics.median(between(*pair) for pair in pairs)
    section.put(event=event)
    measured: dict[str, tuple[dict[Key, float], dry_run.DryRunRuntime]] = {}
    for precision in precisions[:1] if section.args.quick else precisions:
        with section.attempt(precision):
            seconds, host = timed_steps(KernelTimer(runtime, mark, between), precision, CONFIG, TRAIN, data, steps, cover)
            measured[precision] = seconds, traced_step(precision, CONFIG, TRAIN, len(data))
            listed = entries(*measured[precision], {}, event)
            section.row(precision, kernels=listed, host=host, note="no kernel's time is counted yet")
    for precision, (seconds, traced) in measured.items():  # counting comes last, because it may take long
        counted, note = counted_times(traced, precision, runtime.name, section)
        listed = entries(seconds, traced, counted, event)
        for kernel in listed:
            kernel["roofline"] = roofline(kernel, ceilings, precision)
        section.row(precision, kernels=listed, note=note)


def ceilings_of(section: Section, gpu: str, precisions: Iterable[str]) -> dict[str, float]:
    """Return the measured ceilings, and the datasheet's for those that were not measured."""
    measured = section.report.found.get("machine", {}).get("ceilings", {})
    names = [*precisions, "float32"]
    if measured.keys() >= {*names, "copy"}:
        return measured
    try:
        peaks = dry_run.GPUS[dry_run.lookup_gpu(gpu)]
    except ConfigError as error:
        section.fail("rooflines", said(error))
        return measured
    rates = {name: getattr(peaks, name, None) for name in names}
    return {name: rate * 1e12 for name, rate in rates.items() if rate} | {"copy": peaks.bandwidth * 1e9} | measured


def traced_step(precision: str, config: ModelConfig, train: TrainConfig, characters: int) -> dry_run.DryRunRuntime:
    """Return a runtime with the costs and launches of the same step, by the same keys."""
    ops = fast(precision, dry_run.DryRunRuntime())
    dry_run.trace_step(ops, config, train, characters)
    return ops.runtime


def counted_times(traced: Any, precision: str, gpu: str, section: Section) -> tuple[dict[Key, tuple[float, str]], str]:
    """Return the seconds and the bound of each kernel that gpt/analysis/step_model.py can count, and a note on the others."""
    try:
        from gpt.analysis.step_model import estimate

        card = dry_run.GPUS[dry_run.lookup_gpu(gpu)]
    except (ImportError, ConfigError) as error:
        return {}, f"no kernel's time is counted: {said(error)}"
    launches: dict[Key, list] = {}
    for launch in traced.launches:
        launches.setdefault(launch[0], []).append(launch)
    counted: dict[Key, tuple[float, str]] = {}
    reasons: dict[str, list[str]] = {}
    for key, own in launches.items():
        try:
            if section.left < RESERVED:
                raise TimeoutError("no time was left")
            (found,) = estimate(own, card, precision)
            counted[key] = found.seconds, found.bound
        except Exception as error:  # such as of a program that is not installed
            reasons.setdefault(said(error), []).append(key[1])
    return counted, "\n".join(f"not counted: {', '.join(dict.fromkeys(names))}: {why}" for why, names in reasons.items())


def entries(seconds: Mapping[Key, float], traced: Any, counted: Mapping[Key, tuple[float, str]], event: float) -> list:
    """Return all kernels that were measured or counted."""
    return [entry(key, seconds, traced.costs, counted, event) for key in dict.fromkeys([*seconds, *counted])]


def entry(
    key: Key, seconds: Mapping[Key, float], costs: Mapping[Key, Any], counted: Mapping[Key, tuple[float, str]], event: float
) -> dict[str, Any]:
    """Return a kernel for gpu.json, with what is known of it.

    event: the seconds that an empty pair of events measures, which is in each call's time.
    """
    op, kernel = key
    found: dict[str, Any] = {"op": op, "kernel": kernel}
    if cost := costs.get(key):
        found |= {"calls": cost.calls, "flops": cost.flops, "bytes": cost.bytes}
    if key in seconds:
        found["seconds"] = max(0.0, seconds[key] - event * found.get("calls", 1))
    if key in counted:
        found["counted"], found["bound"] = counted[key]
    return found


def roofline(kernel: Mapping[str, Any], ceilings: Mapping[str, float], precision: str) -> float | None:
    """Return the least seconds at the ceilings, or None where they or the cost are missing.

    Attention runs on the tensor cores in the 16-bit precisions alone.
    """
    on_tensor_cores = ("gemm", "attention") if precision in ("bf16", "fp16") else ("gemm",)
    rate = ceilings.get(precision if kernel["kernel"].startswith(on_tensor_cores) else "float32")
    if "flops" not in kernel or not rate or "copy" not in ceilings:
        return None
    return max(kernel["flops"] / rate, kernel["bytes"] / ceilings["copy"])


def gap(kernel: Mapping[str, Any]) -> float | None:
    """Return measured minus counted seconds, or None where one of them is missing."""
    return kernel["seconds"] - kernel["counted"] if {"seconds", "counted"} <= kernel.keys() else None


def largest_gaps_first(listed: Iterable[dict]) -> list[dict]:
    """Sort by the gap; then come the kernels that are only measured, the slowest first, and those that are only counted."""

    def rank(kernel: dict) -> tuple:
        return (gap(kernel) is None, "seconds" not in kernel, -(gap(kernel) or kernel.get("seconds", 0.0)))

    return sorted(listed, key=rank)


COLUMNS = (
    *("op:32", "kernel:52", "calls:>6", "us:>9.1f", "counted us:>12.1f", "measured/counted:>18.2f", "gap us:>9.1f", "bound:>14"),
    *("MiB:>8.0f", "GFLOP:>8.1f", "% of roofline:>15.0f"),
)


def show_kernels(found: dict) -> str:
    lines = []
    for precision, row in found["rows"].items():
        total, counted, least, host = (1e3 * seconds for seconds in (*sums(row["kernels"]), row["host"]))
        lines += [
            f"kernels of a step in {precision}: {total:.2f} ms measured, {counted:.2f} ms counted, {least:.2f} ms at the ceilings; "
            f"the host launches them in {host:.1f} ms; {found['event'] * 1e6:.1f} us of an event are taken off each measured call; "
            "a counted call includes the gap after it",
            *([row["note"]] if row["note"] else []),
            table([kernel_row(k) for k in largest_gaps_first(row["kernels"])], COLUMNS),
        ]
    return "\n".join(lines)


def sums(listed: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the measured, the counted and the least seconds of all kernels."""
    return [sum(kernel.get(what) or 0.0 for kernel in listed) for what in ("seconds", "counted", "roofline")]


def kernel_row(k: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of a kernel: blank where a figure is missing."""
    seconds, counted, least = k.get("seconds"), k.get("counted"), k.get("roofline")
    ratio = seconds / counted if seconds and counted else None
    cost = [k["bytes"] / 2**20, k["flops"] / 1e9] if "calls" in k else [None, None]
    of_roofline = 100 * least / seconds if least and seconds else None
    return [k["op"], k["kernel"], k.get("calls"), us(seconds), us(counted), ratio, us(gap(k)), k.get("bound"), *cost, of_roofline]
