"""The last table: everything that is worth pasting into an issue, as Markdown. It names no host, user or path."""

import statistics
from collections.abc import Callable
from typing import Any

from gpu_sections.gradients import WITHIN
from gpu_sections.implementations import GRAPH, PLAIN
from gpu_sections.kernels import gap, largest_gaps_first, sums
from gpu_sections.pipes import verdict
from gpu_sections.steps import fair, median_step
from gpu_sections.tests import show_tests
from gpu_sections.training import TARGET, of_all_steps
from gpu_sections.workload import CONFIG, TOKENS

Found = dict[str, Any]
GAPS = 5  # kernels to list


def markdown(found: Found) -> str:
    """Return the table, with a row for everything: what was not measured says so."""
    card = found.get("machine", {}).get("gpu", "an unknown card")
    lines = [f"| tensorlite, preset shakespeare | {card} |", "|---|---|"]
    for name, row in ROWS.items():
        lines.append(f"| {name} | {cell(row, found)} |")
    lines += [f"| {name} | {value} |" for name, value in gaps(found)]
    lines.append(f"| failed or left out | {failures(found) or 'nothing'} |")
    return "\n".join(lines)


def cell(row: Callable[[Found], str], found: Found) -> str:
    """Return a row's value. A figure that it is made from may be missing."""
    try:
        return row(found).replace("|", "/")
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, AttributeError):
        return "not measured"


def failures(found: Found) -> str:
    """Return what failed, without the reasons, which may name paths."""
    names = [f"{section}: {what}" for section, own in found.items() for what in own.get("failures", {})]
    names += [f"{section}: all of it" for section, own in found.items() if "skipped" in own]
    return "; ".join(names).replace("|", "/")


def versions(found: Found) -> str:
    own = found["machine"]
    driver = f"{own['cuda_of_driver'] // 1000}.{own['cuda_of_driver'] % 1000 // 10}"
    libraries = ", ".join(f"{name} {own.get(name) or '-'}" for name in ("nvrtc", "cublaslt", "cupy", "torch"))
    return f"{own['driver']}, CUDA {driver}; {libraries}"


def precision_of(found: Found) -> str:
    return found["machine"]["precision"]


def our_step(found: Found, form: str) -> float:
    return found_step(found, form.format(precision_of(found)))


def found_step(found: Found, name: str) -> float:
    """Return the seconds of an implementation's step. Raises KeyError if it was not timed."""
    rows = found["steps"]["rows"]
    if not rows[name].get("seconds"):
        raise KeyError(name)
    return median_step(rows, name)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def fair_step(found: Found) -> str:
    name, seconds = fair(found["steps"]["rows"])
    if not name:
        raise KeyError("PyTorch")
    return f"{ms(seconds)} ({name}, {precision_of(found)})"


def times_fair(found: Found) -> str:
    return f"{fair(found['steps']['rows'])[1] / our_step(found, GRAPH):.2f}" if fair_step(found) else ""


def first_run(found: Found) -> dict[str, Any]:
    return found["run"]["rows"][precision_of(found)]


def best_val(found: Found) -> str:
    row = first_run(found)
    return f"{row['best_val']:.4f} after {row['steps']:,} steps (wanted: {TARGET} after all)"


def second_run(found: Found) -> str:
    return f"{'yes' if found['run']['same_bits'] else 'NO'}: {found['run']['compared']}"


def new_processes(found: Found) -> str:
    first, second = found["choices"]["rows"].values()
    verdict = "yes" if found["choices"]["differences"] == [] else "NO"
    return f"{verdict}; first step after {first['first']:.1f} s, and {second['first']:.1f} s in the second process"


def worst_gradient(found: Found) -> str:
    rows = found["gradients"]["rows"].items()
    return ", ".join(f"{name} {row['roundings']:.1f} of {WITHIN[name]} roundings ({row['worst']})" for name, row in rows)


def all_kernels(found: Found) -> str:
    listed = found["kernels"]["rows"][precision_of(found)]["kernels"]
    measured, counted, _ = sums(listed)
    return f"{ms(measured)} measured" + (f", {ms(counted)} counted" if counted else "")


def gaps(found: Found) -> list[tuple[str, str]]:
    """Return a row for each of the kernels whose measured time is furthest above the counted one."""
    listed = found.get("kernels", {}).get("rows", {}).get(found.get("machine", {}).get("precision"), {}).get("kernels", [])
    rows = []
    for i, kernel in enumerate([kernel for kernel in largest_gaps_first(listed) if gap(kernel) is not None][:GAPS], 1):
        measured, counted, above = (seconds * 1e6 for seconds in (kernel["seconds"], kernel["counted"], gap(kernel)))
        name = f"{kernel['op']}: {kernel['kernel']}"
        rows.append((f"gap {i}", f"{name}: {measured:.0f} us measured, {counted:.0f} counted ({kernel['bound']}), {above:+.0f}"))
    return rows


def attention(found: Found) -> str:
    """Return our attention beside the fastest of PyTorch's, per layer."""
    listed = found["kernels"]["rows"][precision_of(found)]["kernels"]
    torch = [times for times in found["sdpa"]["rows"][f"dropout {CONFIG.dropout}"].values() if isinstance(times, dict)]
    parts = []
    for way in ("forward", "backward"):
        ours = sum(k.get("seconds", 0.0) for k in listed if k["kernel"].startswith(f"attention_{way}")) / CONFIG.n_layer
        theirs = f"{min(times[way] for times in torch) * 1e6:.0f}" if torch else "-"
        parts.append(f"{way} {ours * 1e6:.0f} us (PyTorch {theirs})")
    return ", ".join(parts)


def written(found: Found) -> str:
    rows = {name: row for name, row in found["generation"]["rows"].items() if row.get("seconds")}
    return "; ".join(f"{name.partition(': ')[2]} {1 / statistics.median(row['seconds']):,.0f}" for name, row in rows.items())


ROWS: dict[str, Callable[[Found], str]] = {
    "driver": versions,
    "commit": lambda found: found["machine"]["commit"] or "unknown",
    "precision": precision_of,
    "step, one graph": lambda found: f"{ms(our_step(found, GRAPH))}, {TOKENS / our_step(found, GRAPH):,.0f} tokens/s",
    "step, op by op": lambda found: ms(our_step(found, PLAIN)),
    "step, reference": lambda found: ms(found_step(found, "reference")),
    "step, PyTorch, fair": fair_step,
    "x fair": times_fair,
    "run": lambda found: of_all_steps(first_run(found)),
    "best validation loss": best_val,
    "second run bitwise equal": second_run,
    "same algorithms and losses in a new process": new_processes,
    "GPU tests": lambda found: show_tests(found["tests"]),
    "worst gradient": worst_gradient,
    "kernels of a step": all_kernels,
    "attention per layer": attention,
    "ALU pipe": lambda found: verdict(found["ncu"]["rows"]),
    "generation, tokens/s": written,
}
