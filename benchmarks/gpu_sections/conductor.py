"""Runs the sections of benchmarks/gpu.py, each in a process with a time limit, and prints their tables."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from gpt.data import tiny_shakespeare
from gpt.errors import DataError
from gpu_sections.attention import sdpa, show_sdpa
from gpu_sections.choices import choices, show_choices
from gpu_sections.first_steps import print_first_steps
from gpu_sections.gemms import gemms, show_gemms
from gpu_sections.generation import generation, show_generation
from gpu_sections.gradients import gradients, show_gradients
from gpu_sections.implementations import serve
from gpu_sections.kernels import kernels, show_kernels
from gpu_sections.machine import machine, show_machine
from gpu_sections.markdown import markdown
from gpu_sections.needs import how_to_carry_the_corpus
from gpu_sections.pipes import ncu, show_ncu
from gpu_sections.report import MIN_SECONDS, Report, Section, said, say, shown
from gpu_sections.steps import show_steps, steps
from gpu_sections.tests import show_tests, tests
from gpu_sections.training import run, show_run
from gpu_sections.workload import SCRIPT, card_precisions
from tensorlite import DeviceError

SHUTDOWN_SECONDS = 5.0  # time after its limit in which a section may end by itself
WINDOWS = sys.platform == "win32"  # no process groups, no SIGKILL


@dataclass
class Args:
    """Measure the CUDA backend on a GPU, in under ten minutes."""

    quick: bool = False
    """Take only a few minutes: fewer rounds, no torch.compile, 250 training steps."""
    out: Path = Path("runs/benchmark-gpu")
    """Folder for gpu.json, gpu.md, gpu.png and tests.log."""
    only: tuple[str, ...] = ()
    """Sections to run. The others keep the results of an earlier call."""
    data: Path | None = None
    """Text for train.py. Default: the lecture's corpus, which is downloaded once."""
    minutes: float = 9.0
    """Time for all sections. Each has its share, and what the sections before it left over."""
    precisions: tuple[str, ...] = ()
    """Precisions to measure, the main one first. Default: those of the card, the best first."""
    commit: str = ""
    """Name of the measured commit in gpu.json. Default: as git reports it."""
    max_autotune: bool = False
    """Also time torch.compile(mode="max-autotune-no-cudagraphs"), which takes minutes to compile."""
    needs: bool = False
    """List the packages that it needs, and how to carry them to a machine without a package index."""
    check: bool = False
    """Used by the script itself: check whether the backend can be used here."""
    section: str | None = None
    """Used by the script itself: run this section."""
    limit: float = math.inf
    """Used by the script itself: time limit of the section in seconds."""
    serve: str | None = None
    """Used by the script itself: run this implementation on request."""
    first_steps: bool = False
    """Used by the script itself: make a few steps in a new process."""

    @property
    def precision(self) -> str:
        """The main precision."""
        return self.precisions[0]


@dataclass(frozen=True)
class Part:
    """One section."""

    work: Callable[[Section], None]
    show: Callable[[dict], str]  # formats its results as a table
    share: float  # of the time, in percent


SECTIONS = {
    "machine": Part(machine, show_machine, 6),
    "tests": Part(tests, show_tests, 18),
    "gradients": Part(gradients, show_gradients, 7),
    "gemms": Part(gemms, show_gemms, 5),
    "kernels": Part(kernels, show_kernels, 6),
    "ncu": Part(ncu, show_ncu, 4),
    "choices": Part(choices, show_choices, 5),
    "steps": Part(steps, show_steps, 20),
    "run": Part(run, show_run, 20),
    "sdpa": Part(sdpa, show_sdpa, 3),
    "generation": Part(generation, show_generation, 6),
}


def conduct(args: Args) -> int:
    """Run each section in a process, and print their tables and then the Markdown table. Returns 1 if anything failed."""
    wanted = [name for name in SECTIONS if not args.only or name in args.only]
    whole = sum(SECTIONS[name].share for name in wanted)
    report = Report(args.out / "gpu.json")
    start = time.monotonic()
    for i, name in enumerate(wanted):
        reserved = args.minutes * 60 * sum(SECTIONS[later].share for later in wanted[i + 1 :]) / whole
        limit = args.minutes * 60 - (time.monotonic() - start) - reserved
        if limit < MIN_SECONDS:
            report.put(name, {"failures": {"all of it": f"left out: {max(limit, 0):.0f} s were left"}})
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
    finish(args.out)
    return int(any(report.found.get(name, {}).get("failures") for name in wanted))


def finish(out: Path) -> None:
    """Write gpu.md, and print it last."""
    text = markdown(Report(out / "gpu.json").found)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.md").write_text(text + "\n", encoding="utf-8")
    print(f"\nall of it is in {out / 'gpu.json'}, and this table in {out / 'gpu.md'}:\n\n{text}", flush=True)


def run_section(name: str, args: Args, limit: float) -> str:
    """Run a section in a separate process and end all processes that it started. Returns "", or why the section ended early."""
    own = ["--section", name, "--limit", f"{limit:.0f}", "--out", str(args.out), "--commit", args.commit]
    own += ["--precisions", *args.precisions]
    own += [flag for flag, on in (("--quick", args.quick), ("--max-autotune", args.max_autotune)) if on]
    own += ["--data", str(args.data)] if args.data else []
    process = subprocess.Popen([sys.executable, str(SCRIPT), *own], **({} if WINDOWS else {"process_group": 0}))
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


def precisions_here() -> tuple[str, ...]:
    """Return the precisions of this machine's card, none if the backend cannot be used. A separate process finds out.

    In this process a CUDA context would remain. It would take memory, and a GPU in exclusive mode allows no second one.
    """
    command = [sys.executable, str(SCRIPT), "--check"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return tuple(json.loads(done.stdout.splitlines()[-1])) if done.returncode == 0 else ()


def check() -> int:
    """Create a CudaRuntime and print the precisions of the card as JSON. Returns the exit status."""
    try:
        from tensorlite.cuda.runtime.device import CudaRuntime

        runtime = CudaRuntime()
        print(json.dumps(card_precisions(runtime.capability, runtime.name)))
    except Exception as error:
        print(f"error: {error if isinstance(error, DeviceError) else said(error)}", file=sys.stderr)
        return 2
    return 0


def main() -> int:
    """Run the command line and return the exit status."""
    args = tyro.cli(Args)
    if args.serve:
        return serve(args.serve, args.precision)
    if args.first_steps:
        return print_first_steps(args.precision)
    if args.check:
        return check()
    unknown = [name for name in (*args.only, *([args.section] if args.section else [])) if name not in SECTIONS]
    if unknown:
        print(f"error: only {' '.join(unknown)}: the sections are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    if args.section:
        section = Section(args.section, Report(args.out / "gpu.json"), args)
        with section.attempt("all of it"):
            SECTIONS[args.section].work(section)
        return 0
    precisions = precisions_here()
    if not precisions or not corpus_can_be_read(args):  # checked before any work
        return 2
    try:
        return conduct(replace(args, precisions=args.precisions or precisions))
    except KeyboardInterrupt:
        finish(args.out)
        return 130


def corpus_can_be_read(args: Args) -> bool:
    """Return whether the section run has a text, after a download where the cache has none."""
    if args.only and "run" not in args.only:
        return True
    if args.data:
        if not args.data.is_file():
            print(f"error: --data: there is no file {args.data}", file=sys.stderr)
        return args.data.is_file()
    try:
        tiny_shakespeare()
    except DataError as error:
        print(f"error: {error}\n{how_to_carry_the_corpus()}", file=sys.stderr)
        return False
    return True
