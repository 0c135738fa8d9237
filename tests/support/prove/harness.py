"""Runs a proof: numbered cases, each of which depends only on its number. It uses all cores at the lowest priority, or one.

A proof is a function `case(n)` that returns what happened, in a word or two, or raises AssertionError. A case that failed is run
again alone with `--first N --cases 1`.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

MEMORY = Path("/dev/shm")  # files here never reach a disk


def draw(proof: str, n: int) -> random.Random:
    """The random numbers of a case."""
    return random.Random(f"{proof} {n}")


def scratch() -> Path:
    """A folder of this process, in memory where the system has such; removed when the proof ends."""
    return Path(_scratch(os.getpid()).name)  # a forked process has one of its own


@cache
def _scratch(pid: int) -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(dir=tempfile.tempdir or (MEMORY if MEMORY.is_dir() else None))


def peak_bytes() -> int:
    """The most memory that this process ever held; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def run(case: Callable[[int], str], numbers: Iterable[int]) -> tuple[Counter[str], int]:
    """The outcomes of some cases, and by how much they raised this process's peak memory, after the first of them."""
    outcomes: Counter[str] = Counter()
    start = 0
    for n in numbers:
        try:
            outcomes[case(n)] += 1
        except Exception as error:
            raise AssertionError(f"case {n}: {type(error).__name__}: {error}") from error
        start = start or peak_bytes()
    return outcomes, peak_bytes() - start


def main(case: Callable[[int], str], cases: int, chunk: int = 1) -> None:
    """Run a proof's cases as its command line says and print what came of them. The first that fails ends the others."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--cases", type=int, default=cases)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    start, total, growth, failures = time.perf_counter(), Counter(), 0, []
    last, failed = args.first + args.cases, multiprocessing.Event()
    chunks = [(case, range(n, min(n + chunk, last))) for n in range(args.first, last, chunk)]
    with (
        tempfile.TemporaryDirectory(prefix="prove-", dir=MEMORY if MEMORY.is_dir() else None) as folder,
        multiprocessing.Pool(args.processes, _begin, (folder, args.processes > 1, failed)) as pool,
    ):
        for outcomes, grown, failure in pool.imap_unordered(_run, chunks):
            total += outcomes
            growth = max(growth, grown)
            failures += [failure] if failure else []
        pool.close()  # and not terminated: a run that is being trained takes that for a wish to be saved
        pool.join()
    if failures:
        sys.exit(failures[0])
    listed = ", ".join(f"{outcome} {n:,}" for outcome, n in total.most_common())
    seconds = time.perf_counter() - start
    print(f"{Path(sys.argv[0]).stem}: {total.total():,} cases in {seconds:.0f} s, +{growth / 2**20:.1f} MiB: {listed}")


def _begin(folder: str, low_priority: bool, event: Any) -> None:
    """In a process of the pool: where its files go, and how it hears that a case failed."""
    global failed
    failed, tempfile.tempdir = event, folder
    if low_priority and hasattr(os, "nice"):
        os.nice(19)


def _run(work: tuple[Callable[[int], str], range]) -> tuple[Counter[str], int, str]:
    if failed.is_set():
        return Counter(), 0, ""
    try:
        return *run(*work), ""
    except AssertionError as error:
        failed.set()
        return Counter(), 0, str(error)
