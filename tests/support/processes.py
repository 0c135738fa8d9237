"""Programs that run on several ranks, and the processes that they start."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from paths import ROOT, SUPPORT


def start_on_two_ranks(mpiexec, cwd, *programs):
    """Start one program for both ranks, or one for each, as a user would."""
    parts = [["-n", str(2 // len(programs)), sys.executable, *map(str, program)] for program in programs]
    arguments = [word for part in parts for word in (":", *part)][1:]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(SUPPORT), str(ROOT))), "OPENBLAS_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([mpiexec, *arguments], cwd=cwd, env=environment, **pipes)


def ended(process):
    """Its exit status and what it printed."""
    stdout, stderr = process.communicate(timeout=120)
    return SimpleNamespace(returncode=process.returncode, stdout=stdout, stderr=stderr)


def children(pid):
    """The Python processes below a process, on Linux."""
    if not Path("/proc/self/task").exists():
        pytest.skip("this system does not list a process's children")
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child] if "python" in Path(f"/proc/{child}/comm").read_text() else children(child)
    return found


def running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
