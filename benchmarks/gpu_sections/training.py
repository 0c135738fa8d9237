"""train.py --preset shakespeare from start to end: twice in bf16 for the same bits, once in tf32."""

import contextlib
import hashlib
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpt.training import checkpoint, run_dir
from gpu_sections.implementations import GRAPH
from gpu_sections.machine import memory_used
from gpu_sections.report import Section, say
from gpu_sections.workload import CONFIG, ROOT, TRAIN

TARGET = 1.48  # validation loss that the lecture reports


def run(section: Section) -> None:
    """train.py from start to end, in folders that go away."""
    with tempfile.TemporaryDirectory() as temporary:
        first = None
        for name, precision in (("bf16", "bf16"), ("bf16 again", "bf16"), ("tf32", "tf32")):
            need = (first or {}).get("wall", 0.0) * (1.2 if precision == "bf16" else slower(section.report.found))
            if first is None and name != "bf16":
                break
            if section.left < need + 3:
                section.fail(name, f"left out: {section.left:.0f} s were left, it takes about {need:.0f}")
                continue
            with section.attempt(name):
                found = training(section, precision, Path(temporary) / name.replace(" ", "-"))
                section.row(name, **found)
                say(f"  {name}: {found['last_line']}")
                first = first or found
                if name == "bf16 again":
                    same = found["sha256"] == first["sha256"] and found["losses"] == first["losses"]
                    section.put(same_bits=same)
                    if not same:
                        section.fail(name, "its parameters or losses are not the bits of the first run")


def slower(found: dict) -> float:
    """About how many times as long a run in tf32 takes as one in bf16, by the steps if they were timed."""
    rows = found.get("steps", {}).get("rows", {})
    times = [statistics.median(rows.get(GRAPH.format(p), {}).get("seconds") or [math.nan]) for p in ("tf32", "bf16")]
    return 1.2 * times[0] / times[1] if all(map(math.isfinite, times)) else 2.5


def training(section: Section, precision: str, out: Path) -> dict[str, Any]:
    """One run of train.py, and what it leaves. Raises RuntimeError with its last words when it fails."""
    command = [sys.executable, str(ROOT / "train.py"), "--preset", "shakespeare", "--device", "cuda", "--backend", "fast"]
    command += ["--precision", precision, "--out", str(out)] + (
        ["--data", str(section.args.data.resolve())] if section.args.data else []
    )
    command += ["--max-iters", "300", "--eval-interval", "100", "--eval-batches", "5"] if section.args.quick else []
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
                raise RuntimeError("ended at the section's limit of time")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        wall = time.monotonic() - start
        said_by_it.seek(0)
        words = said_by_it.read()
    if process.returncode:
        error = RuntimeError(f"status {process.returncode}: {(words.strip().splitlines() or [''])[-1]}")
        error.add_note(words[-4000:])
        raise error
    shutil.copy(out / "loss.png", section.args.out / "gpu.png")
    return results(out, words) | {"wall": wall, "memory": most - before}


def results(out: Path, words: str) -> dict[str, Any]:
    """What a run's folder and its words say. train: seconds in training steps alone."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    tokens = TRAIN.batch_size * CONFIG.block_size
    params = checkpoint.load(run_dir.last_checkpoint(out)).params
    sample = re.search(r"^--- \d+ characters.*?\n(.*)\n---$", words, re.DOTALL | re.MULTILINE)
    return {
        "steps": last["step"],
        "train": last["step"] * tokens / last["tokens_per_s"] if last["tokens_per_s"] else math.nan,
        "tokens_per_s": last["tokens_per_s"],
        "best_val": min(record["val_loss"] for record in records),
        "losses": [[record["step"], record["train_loss"], record["val_loss"]] for record in records],
        "sha256": hashlib.sha256(params.tobytes()).hexdigest(),
        "last_line": words.strip().splitlines()[-1],
        "sample": sample[1] if sample else "",
        "said": words.splitlines()[:12],
    }


def show_run(found: dict) -> str:
    lines = [f"train.py --preset shakespeare; wanted: a best validation loss of at most {TARGET}"]
    for name, row in found["rows"].items():
        _, train, val = row["losses"][-1]
        seconds = (
            f"{row['steps']} steps in {row['wall']:.1f} s, {row['train']:.1f} s of it training, {row['tokens_per_s']:,.0f} tokens/s"
        )
        losses = f"best val {row['best_val']:.4f}, last train {train:.4f}, val {val:.4f}"
        lines.append(f"  {name:11}{seconds}; {losses}; {row['memory'] / 2**20:,.0f} MiB of the device, its context included")
    if "same_bits" in found:
        lines.append(f"  the second run's parameters and losses are {'' if found['same_bits'] else 'NOT '}the first one's bits")
    return "\n".join(lines)
