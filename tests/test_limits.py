"""What a process may use: control groups as file trees, and, where this machine lets a test make them, as real ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt import limits

ROOT = Path(__file__).parents[1]
GIB = 2**30
V1 = Path("/sys/fs/cgroup/memory")


def tree(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


V2 = {"proc/self/cgroup": "0::/user.slice/job\n"}
MEMORY = {
    "version 2, the group itself": (V2 | {"sys/fs/cgroup/user.slice/job/memory.max": "629145600\n"}, 629145600),
    "version 2, one around it": (
        V2 | {"sys/fs/cgroup/user.slice/memory.max": "1000000\n", "sys/fs/cgroup/user.slice/job/memory.max": "max\n"},
        1000000,
    ),
    "version 2, within a container": (V2 | {"sys/fs/cgroup/memory.max": "2000000\n"}, 2000000),
    "version 1": (
        {"proc/self/cgroup": "4:memory:/docker/ab\n0::/\n", "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": "3000000\n"},
        3000000,
    ),
    "version 1, within a container": (
        {"proc/self/cgroup": "4:cpu,memory:/docker/ab\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000\n"},
        4000000,
    ),
    "no limit": (V2 | {"sys/fs/cgroup/memory.max": "max\n"}, None),
    "version 1, no limit": (
        {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
        None,
    ),
    "no files": ({}, None),
}


@pytest.mark.parametrize("case", MEMORY)
def test_memory_of_a_control_group(case, tmp_path, monkeypatch):
    files, limit = MEMORY[case]
    monkeypatch.setattr(limits, "_physical_memory", lambda: 64 * GIB)
    monkeypatch.setattr(limits, "_shell_limits", lambda: iter(()))
    assert limits.available_memory(tree(tmp_path, files)) == (64 * GIB if limit is None else limit)


CPU = {
    "version 2": (V2 | {"sys/fs/cgroup/user.slice/job/cpu.max": "300000 100000\n"}, 3),
    "version 2, less than one": (V2 | {"sys/fs/cgroup/user.slice/job/cpu.max": "50000 100000\n"}, 1),
    "version 2, around it": (
        V2 | {"sys/fs/cgroup/cpu.max": "400000 200000", "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000"},
        2,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "7:cpu,cpuacct:/docker/ab\n",
            "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us": "550000\n",
            "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_period_us": "100000\n",
        },
        5,
    ),
    "version 1, no quota": (
        {
            "proc/self/cgroup": "7:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
    "no files": ({}, 8),
}


@pytest.mark.parametrize("case", CPU)
def test_processors_of_a_control_group(case, tmp_path, monkeypatch):
    files, expected = CPU[case]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert limits.processors(tree(tmp_path, files)) == expected


@pytest.mark.parametrize(("words", "expected"), [("3", 3), ("3,2", 3), ("0", 1), ("64", 8), ("many", 8), ("", 8)])
def test_processors_by_the_wish_of_openmp(words, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", words)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert limits.processors(tmp_path) == expected


LIMITS = "from gpt.limits import *; print(available_memory(), memory_in_use())"


def said(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, **options)
    return [int(n) for n in done.stdout.split()]


@pytest.mark.program
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the addresses of a process for others to read")
@pytest.mark.parametrize("flag", ["-v", "-d"])
def test_the_limit_of_a_shell(flag):
    """What is reserved and not used is taken off, and what is in use stays."""
    command = ["sh", "-c", f'ulimit {flag} 4000000 && exec "$@"', "sh", sys.executable, "-c", LIMITS]
    memory, in_use = said(command, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert in_use < memory <= 4000000 * 1024


@pytest.mark.program
@pytest.mark.skipif(not os.access(V1, os.W_OK), reason="no control groups of version 1 that this user may make")
def test_a_real_control_group_of_version_1():
    group = V1 / f"tensorlite-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(600 * 2**20))
        command = ["sh", "-c", f'echo $$ > {group}/tasks && exec "$@"', "sh", sys.executable, "-c", LIMITS]
        assert said(command)[0] == 600 * 2**20
    finally:
        group.rmdir()
