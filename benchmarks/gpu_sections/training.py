"""train.py --preset shakespeare in the best precision, again to compare every bit, and in tf32."""

import contextlib
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.training import checkpoint, run_dir
from gpu_sections.implementations import GRAPH
from gpu_sections.machine import memory_used
from gpu_sections.report import Section, say
from gpu_sections.steps import median_step
from gpu_sections.workload import ROOT, TOKENS, TRAIN

TARGET = 1.48  # the validation loss that the lecture reports
UNIT = TRAIN.eval_interval  # the steps of a run are a multiple of it, unless it is very short
QUICK_STEPS = UNIT
PROBE_STEPS = 50  # of a run that only measures how long a step takes
REPEATED = 500  # steps of the second run where two whole ones do not fit
START = 15.0  # seconds of a run before its first step and after its last
EVALUATIONS = 1.25  # the time of steps with their evaluations over that of steps alone, at most
SLOWER = 4.0  # times as long a step in tf32 may take, if it was not timed
MARGIN = 4.0  # seconds to keep


def run(section: Section) -> None:
    """Train as many of the steps as fit, in folders that go away."""
    main, *others = section.args.precisions
    with tempfile.TemporaryDirectory() as temporary:
        folders = (Path(temporary) / str(i) for i in range(9))
        step = median_step(section.report.found.get("steps", {}).get("rows", {}), GRAPH.format(main))
        if not math.isfinite(step):
            with section.attempt("probe"):
                step = TOKENS / training(section, main, PROBE_STEPS, next(folders))["tokens_per_s"]
                say(f"  a step takes {step * 1e3:.1f} ms")
        wanted = QUICK_STEPS if section.args.quick else TRAIN.max_iters
        first, again = planned(section.left - MARGIN, step, wanted)
        attempted(section, main, main, first, folders)
        attempted(section, f"{main} again", main, again, folders)
        compare(section, main)
        if "tf32" in others:
            in_tf32 = median_step(section.report.found.get("steps", {}).get("rows", {}), GRAPH.format("tf32"))
            fits = fitting(section.left - MARGIN, in_tf32 if math.isfinite(in_tf32) else SLOWER * step)
            attempted(section, "tf32", "tf32", rounded_down(min(wanted, fits), UNIT), folders)


def planned(left: float, step: float, wanted: int) -> tuple[int, int]:
    """Return the steps of the first run and of the second: both whole if they fit, else a short second one.

    The second run ends at a step at which the first one is evaluated, so that both can be compared there.

    left: seconds for both.
    step: seconds per step, NaN if it is not known.
    wanted: steps of a whole run.
    """
    both = fitting(left - START, step)
    if both < 2 * UNIT:
        half = rounded_down(both / 2, UNIT // 5)
        return half, half
    again = max(UNIT, min(REPEATED, both / 4))
    first = rounded_down(min(wanted, both - again), UNIT)
    return first, min(first, rounded_down(both - first, UNIT))


def fitting(left: float, step: float) -> float:
    """Return how many steps fit into so many seconds, with their evaluations: none if it is not known how long one takes."""
    return max(0.0, (left - START) / (EVALUATIONS * step)) if math.isfinite(step) else 0.0


def rounded_down(steps: float, unit: int) -> int:
    return int(steps // unit) * unit


def attempted(section: Section, name: str, precision: str, steps: int, folders: Iterator[Path]) -> None:
    """Make a run and add its row, or say that there is no time for it."""
    if steps == 0:
        section.fail(name, f"left out: {section.left:.0f} s were left")
        return
    with section.attempt(name):
        found = training(section, precision, steps, next(folders))
        section.row(name, **found)
        say(f"  {name}: {found['last_line']}")


def compare(section: Section, main: str) -> None:
    """Compare the second run with the first: at all evaluations that both made and, if both are of one length, all parameters."""
    rows = section.found.get("rows", {})
    if not {main, f"{main} again"} <= rows.keys():
        return
    first, again = rows[main], rows[f"{main} again"]
    pairs = list(zip(first["losses"], again["losses"], strict=False))  # both were evaluated at the same steps
    whole = first["steps"] == again["steps"]
    same = all(a == b for a, b in pairs) and (not whole or first["sha256"] == again["sha256"])
    section.put(same_bits=same, compared=f"{'parameters and ' if whole else ''}losses of {pairs[-1][0][0]:,} steps")
    if not same:
        section.fail(f"{main} again", "its parameters or losses are not bitwise equal to those of the first run")


def training(section: Section, precision: str, steps: int, out: Path) -> dict[str, Any]:
    """Run train.py once and return its results. Raises RuntimeError with its last words if it fails."""
    command = [sys.executable, str(ROOT / "train.py"), "--preset", "shakespeare", "--device", "cuda", "--backend", "fast"]
    command += ["--precision", precision, "--out", str(out), "--max-iters", str(steps)]
    command += ["--eval-interval", str(min(steps, 100 if section.args.quick else UNIT))]
    command += ["--eval-batches", "5"] if section.args.quick else []
    command += ["--data", str(section.args.data.resolve())] if section.args.data else []
    out.mkdir(parents=True)
    pci = section.report.found.get("machine", {}).get("pci", "0")
    before = most = memory_used(pci)
    start = time.monotonic()
    with (out / "said").open("w+") as said_by_it:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said_by_it, stderr=subprocess.STDOUT)
        while process.poll() is None:
            most = max(most, memory_used(pci))
            if section.left < 2:
                process.kill()
                process.wait()
                raise RuntimeError("ended at the section's time limit")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        wall = time.monotonic() - start
        said_by_it.seek(0)
        words = said_by_it.read()
    if process.returncode:
        error = RuntimeError(f"status {process.returncode}: {(words.strip().splitlines() or [''])[-1]}")
        error.add_note(words[-4000:])
        raise error
    with contextlib.suppress(OSError):  # train.py goes on without a picture
        shutil.copy(out / "loss.png", section.args.out / "gpu.png")
    return results(out, words) | {"wall": wall, "memory": most - before}


def results(out: Path, words: str) -> dict[str, Any]:
    """Return the results in a run's folder and in its output. train: seconds in training steps alone."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    params = checkpoint.load(run_dir.last_checkpoint(out)).params
    sample = re.search(r"^--- \d+ characters.*?\n(.*)\n---$", words, re.DOTALL | re.MULTILINE)
    return {
        "steps": last["step"],
        "train": last["step"] * TOKENS / last["tokens_per_s"] if last["tokens_per_s"] else math.nan,
        "tokens_per_s": last["tokens_per_s"],
        "best_val": min(record["val_loss"] for record in records),
        "losses": [[record["step"], record["train_loss"], record["val_loss"]] for record in records],
        "skipped_steps": last.get("skipped_steps", 0),
        "sha256": hashlib.sha256(params.tobytes()).hexdigest(),
        "last_line": words.strip().splitlines()[-1],
        "sample": sample[1] if sample else "",
        "said": words.splitlines()[:12],
    }


def show_run(found: dict) -> str:
    lines = [f"train.py --preset shakespeare; wanted: a best validation loss of at most {TARGET} after {TRAIN.max_iters:,} steps"]
    for name, row in found["rows"].items():
        lines.append(f"  {name:11}{of_all_steps(row)}, {row['tokens_per_s']:,.0f} tokens/s; {losses(row)}; {memory(row)}")
    if "same_bits" in found:
        lines.append(f"  {'bitwise equal' if found['same_bits'] else 'NOT bitwise equal'} in a second run: {found['compared']}")
    return "\n".join(lines)


def of_all_steps(row: dict) -> str:
    """Return how many of the steps a run made, and how long they took."""
    return f"{row['steps']:,} of {TRAIN.max_iters:,} steps in {row['wall']:.1f} s, {row['train']:.1f} s of it training"


def losses(row: dict) -> str:
    _, train, val = row["losses"][-1]
    skipped = f", {row['skipped_steps']:.0f} steps skipped by the loss scale" if row.get("skipped_steps") else ""
    return f"best val {row['best_val']:.4f}, last train {train:.4f}, val {val:.4f}{skipped}"


def memory(row: dict) -> str:
    return f"{row['memory'] / 2**20:,.0f} MiB of the device, its context included"
