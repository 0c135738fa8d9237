"""A part of each proof behind docs/reliability.md; `make prove` runs all of them at full count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT, SUPPORT
from prove.targets import TARGETS

pytestmark = pytest.mark.long

PROC = Path("/proc/self/task")
A_PART = {
    "bits": "--cases 2000 --first 400",
    "mutations": "--cases 5000",
    "kills": "--cases 10",
    "resume": "--cases 8",
    "nans": "--cases 20",
    "syscalls": "EIO",
    "alarms": "--cases 60",
}


def prove(name: str, *arguments: str) -> str:
    """Run a proof in a process of its own. Returns what it printed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(SUPPORT)))}
    command = [sys.executable, "-m", f"prove.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    if name == "syscalls" and done.returncode == 1 and done.stderr.startswith("strace"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.program
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")
@pytest.mark.parametrize("name", A_PART)
def test_a_part_of(name):
    arguments = A_PART[name].split()
    print(prove(name, *arguments, *(["--processes", "1"] if "--cases" in arguments else [])))


@pytest.mark.program
@pytest.mark.skipif(not PROC.exists(), reason="this system has no /proc")
def test_a_run_holds_no_more_files_and_threads_at_its_end():
    print(prove("endurance", "200"))


@pytest.mark.program
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")
def test_a_case_that_fails_is_named_and_ends_the_proof(tmp_path):
    """What runs the proofs can itself say no."""
    (tmp_path / "broken.py").write_text(
        "from prove.harness import main\n\n\ndef case(n):\n    assert n != 7\n    return 'held'\n\n\nmain(case, 10)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SUPPORT)}
    done = subprocess.run([sys.executable, tmp_path / "broken.py"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert done.stderr.startswith("case 7: AssertionError")


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_fuzzed_takes_its_seed_and_pieces_of_it(name):
    target, seed = TARGETS[name]
    for content in (seed(), b"", seed()[:-1], seed()[1:], seed() * 2):
        target(content)
