"""The CUDA backend on this machine's GPU, compared with PyTorch and with the limits of the card, in under ten minutes.

    python benchmarks/gpu.py [--quick] [--out runs/benchmark-gpu] [--only steps run] [--data FILE]

It needs a GPU of compute capability 8.0 or later; PyTorch is optional (pip install torch). Its sections, in order:

    machine     versions, and two ceilings measured here: a large GEMM in each precision, a large copy
    tests       pytest tests/cuda/gpu
    gradients   the gradients of one batch of the full model, in each precision, against the reference in float64
    gemms       the model's GEMMs: cuBLASLt's algorithms, and epilogues fused and unfused
    kernels     the time of each kernel of a step, and the time of its bytes and FLOPs at the ceilings
    sdpa        PyTorch's attention kernels at the same shape
    steps       a training step of the reference, of each precision op by op and as one graph, and of PyTorch, in turns
    run         train.py --preset shakespeare from start to end: twice in bf16, to compare every bit, and once in tf32
    generation  the generation of 255 tokens

Each section is a separate process with a time limit, so that a crash or a hang costs one section, and its results so far remain.
All results are in gpu.json in the output folder, which is rewritten at every step. A short table is printed last.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a checkout that is not installed

from gpu_sections.attention import sdpa, short_attention, show_sdpa
from gpu_sections.gemms import gemms, short_gemms, show_gemms
from gpu_sections.generation import generation, show_generation
from gpu_sections.gradients import gradients, show_gradients
from gpu_sections.implementations import serve
from gpu_sections.kernels import kernels, short_kernels, show_kernels
from gpu_sections.machine import machine, show_machine
from gpu_sections.report import Report, Section, said, say, shown
from gpu_sections.steps import show_steps, steps
from gpu_sections.tests import show_tests, tests
from gpu_sections.training import run, show_run

from tensorlite import DeviceError

MIN_SECONDS = 15.0  # no section starts with less time than this
SHUTDOWN_SECONDS = 5.0  # time after its limit in which a section may end by itself
WINDOWS = sys.platform == "win32"  # no process groups, no SIGKILL


@dataclass
class Args:
    """Measure the CUDA backend on a GPU, in under ten minutes."""

    quick: bool = False
    """Take only a few minutes: fewer rounds, no torch.compile, 300 training steps."""
    out: Path = Path("runs/benchmark-gpu")
    """Folder for gpu.json, gpu.png and tests.log."""
    only: tuple[str, ...] = ()
    """Sections to run. The others keep the results of an earlier call."""
    data: Path | None = None
    """Text for train.py. Default: the lecture's corpus, which is downloaded once."""
    minutes: float = 9.5
    """Time for all sections. Those that do not fit are left out, and the report says so."""
    commit: str = ""
    """Name of the measured commit in gpu.json. Default: as git reports it."""
    max_autotune: bool = False
    """Also time torch.compile(mode="max-autotune-no-cudagraphs"), which takes minutes to compile."""
    check: bool = False
    """Used by the script itself: check whether the backend can be used here."""
    section: str | None = None
    """Used by the script itself: run this section."""
    limit: float = math.inf
    """Used by the script itself: time limit of the section in seconds."""
    serve: str | None = None
    """Used by the script itself: run this implementation on request."""


@dataclass(frozen=True)
class Part:
    """One section."""

    work: Callable[[Section], None]
    seconds: float  # time limit
    show: Callable[[dict], str]  # formats its results as a table


SECTIONS = {
    "machine": Part(machine, 60, show_machine),
    "tests": Part(tests, 170, show_tests),
    "gradients": Part(gradients, 60, show_gradients),
    "gemms": Part(gemms, 60, show_gemms),
    "kernels": Part(kernels, 45, show_kernels),
    "sdpa": Part(sdpa, 40, show_sdpa),
    "steps": Part(steps, 270, show_steps),
    "run": Part(run, 170, show_run),
    "generation": Part(generation, 60, show_generation),
}


def conduct(args: Args) -> int:
    """Run each section in a process, and print their tables and then the short one. Returns 1 if anything failed."""
    wanted = [name for name in SECTIONS if not args.only or name in args.only]
    report = Report(args.out / "gpu.json")
    start = time.monotonic()
    for name in wanted:
        left = args.minutes * 60 - (time.monotonic() - start)
        limit = min(SECTIONS[name].seconds, left)
        if left < MIN_SECONDS:
            report.put(name, {"failures": {"all of it": f"left out: {max(left, 0):.0f} s were left"}})
            continue
        say(f"{name}: at most {limit:.0f} s")
        report.put(name, {})  # the results of an earlier call go
        began = time.monotonic()
        why = run_section(name, args, limit)
        if why:
            report.fail(name, "the process", why)
            say(f"  {why}")
        report.put(name, report.found.get(name, {}) | {"seconds": round(time.monotonic() - began, 1)})
        print(shown(SECTIONS[name].show, report.found.get(name, {})), flush=True)
    print("\n" + summary(report.found), f"all of it: {args.out / 'gpu.json'}", sep="\n", flush=True)
    return int(any(report.found.get(name, {}).get("failures") for name in wanted))


def run_section(name: str, args: Args, limit: float) -> str:
    """Run a section in a separate process and end all processes that it started. Returns "", or why the section ended early."""
    own = ["--section", name, "--limit", f"{limit:.0f}", "--out", str(args.out), "--commit", args.commit]
    own += [flag for flag, on in (("--quick", args.quick), ("--max-autotune", args.max_autotune)) if on]
    own += ["--data", str(args.data)] if args.data else []
    process = subprocess.Popen([sys.executable, __file__, *own], **({} if WINDOWS else {"process_group": 0}))
    try:
        status = process.wait(limit + SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
        return f"ended after {limit:.0f} s, its limit"
    finally:
        end_all(process)
    return "" if status == 0 else f"ended with status {status}"


def end_all(process: subprocess.Popen) -> None:
    """End the process of a section and all processes that it started."""
    if WINDOWS:
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def usable() -> bool:
    """Return whether the backend can be used here. A separate process checks this, and prints the reason if not.

    In this process a CUDA context would remain. It would take memory, and a GPU in exclusive mode allows no second one.
    """
    return subprocess.run([sys.executable, __file__, "--check"], check=False).returncode == 0


def check() -> int:
    """Create a CudaRuntime. Returns the exit status."""
    try:
        from tensorlite.cuda.runtime.device import CudaRuntime

        CudaRuntime("bf16")
    except Exception as error:
        print(f"error: {error if isinstance(error, DeviceError) else said(error)}", file=sys.stderr)
        return 2
    return 0


def summary(found: dict[str, Any]) -> str:
    """Return the short table of all results."""
    lines = ["=" * 100]
    for name, part in SECTIONS.items():
        show = {"kernels": short_kernels, "gemms": short_gemms, "sdpa": lambda _: short_attention(found)}.get(name, part.show)
        if found.get(name):
            lines.append(f"{name} ({found[name].get('seconds', 0):.0f} s): {shown(show, found[name])}")
    return "\n".join(lines)


def main() -> int:
    """Run the command line and return the exit status."""
    args = tyro.cli(Args)
    if args.serve:
        return serve(args.serve)
    unknown = [name for name in (*args.only, *([args.section] if args.section else [])) if name not in SECTIONS]
    if unknown:
        print(f"error: only {' '.join(unknown)}: the sections are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    if args.section:
        section = Section(args.section, Report(args.out / "gpu.json"), args)
        with section.attempt("all of it"):
            SECTIONS[args.section].work(section)
        return 0
    if args.check:
        return check()
    if not usable():  # checked before any work
        return 2
    try:
        return conduct(args)
    except KeyboardInterrupt:
        print("\n" + summary(Report(args.out / "gpu.json").found), flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
