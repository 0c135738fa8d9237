"""The memory and processors that this process may use, read from control groups.

The groups are file trees and, if this machine allows it, real groups.
"""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from failing import failing
from gpt import limits
from paths import ROOT

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
    monkeypatch.setattr(limits, "_shell_limits", lambda _: iter(()))
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its memory in this way")
def test_memory_in_use_grows_by_what_is_used():
    before = limits.memory_in_use()
    block = mmap.mmap(-1, 64 * 2**20)  # not from malloc, which may have memory that other tests have freed
    np.frombuffer(block, np.uint8)[:] = 1
    grown = limits.memory_in_use() - before
    assert 0.75 * len(block) < grown < 1.5 * len(block)


@pytest.mark.parametrize(("succeeds", "expected"), [(1, 8 * GIB), (0, None)])
def test_the_memory_of_windows(succeeds, expected):
    """MEMORYSTATUSEX has 64 bytes, and its third field is at byte 8."""

    def fill(pointer):
        status = pointer._obj
        assert status.length == ctypes.sizeof(status) == 64
        ctypes.memmove(ctypes.addressof(status) + 8, (8 * GIB).to_bytes(8, "little"), 8)
        return succeeds

    assert limits._windows_memory(SimpleNamespace(GlobalMemoryStatusEx=fill)) == expected


def test_windows_asks_its_kernel(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(limits.ctypes, "windll", SimpleNamespace(kernel32="the kernel"), raising=False)
    monkeypatch.setattr(limits, "_windows_memory", lambda kernel: [kernel])
    assert limits._physical_memory() == ["the kernel"]


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="this system does not say how much memory it has")
def test_the_memory_of_the_machine(tmp_path, monkeypatch):
    """As /proc/meminfo gives it, in KiB, less what the kernel keeps for itself."""
    monkeypatch.setattr(limits, "_shell_limits", lambda _: iter(()))
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("no /proc/meminfo here")
    total = int(meminfo.read_text().split("MemTotal:")[1].split()[0]) * 1024
    assert limits.available_memory(tmp_path) == pytest.approx(total, rel=0.1)


LIMITS = "from gpt.limits import *; print(available_memory(), memory_in_use())"


def said(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, **options)
    return [int(n) for n in done.stdout.split()]


@pytest.mark.program
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the addresses of a process for others to read")
@pytest.mark.parametrize("flag", ["-v", "-d"])
def test_the_limit_of_a_shell(flag):
    """Addresses that are reserved but unused are subtracted."""
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


TINY = [
    "--preset",
    "laptop",
    "--max-iters",
    "2",
    "--eval-interval",
    "2",
    "--eval-batches",
    "1",
    "--device",
    "cpu",
    "--data",
    "text.txt",
]


WATCHED = """
import atexit, pathlib, runpy, sys
status, *sys.argv = sys.argv[1:]
atexit.register(lambda: pathlib.Path(status).write_text(pathlib.Path("/proc/self/status").read_text()))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def train(tmp_path):
    """Run train.py after some shell commands. Returns the exit status, the output, and the peak memory.

    The program reports its own peak, because what the system reports for a child includes memory of its parent.
    """
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 900)

    def run(prelude, *flags):
        program = [sys.executable, "-c", WATCHED, str(tmp_path / "status"), str(ROOT / "train.py"), *TINY, *flags]
        command = ["sh", "-c", prelude + '; exec "$@"', "sh", *program]
        done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        fields = dict(line.split(":", 1) for line in (tmp_path / "status").read_text().splitlines())
        return done.returncode, done.stdout, int(fields["VmHWM"].split()[0]) * 1024

    return run


def printed_estimate(out):
    number, unit = next(line.split()[2:4] for line in out.splitlines() if line.startswith("memory   about"))
    return float(number) * {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit.rstrip(",")]


@pytest.mark.long
@pytest.mark.program
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units and ways")
@pytest.mark.parametrize(
    "flags",
    [
        ["--threads", "1"],
        ["--threads", "2"],
        ["--backend", "reference"],
        ["--threads", "2", "--batch-size", "128"],
        ["--n-embd", "512", "--batch-size", "2", "--threads", "2"],
    ],
    ids=" ".join,
)
def test_the_estimate_is_near_the_measured_peak(flags, train):
    """Within a fifth below and a half above: what is estimated fits, and little that fits is refused."""
    status, out, peak = train(":", *flags)
    assert status == 0, out
    assert 0.8 < printed_estimate(out) / peak < 1.5


@pytest.mark.long
@pytest.mark.program
@pytest.mark.skipif(not os.access(V1, os.W_OK), reason="no control groups of version 1 that this user may make")
def test_a_container_of_600_mb(train):
    """What is said to fit trains in it, and what would not is refused before any work."""
    group = V1 / f"tensorlite-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(600 * 2**20))
        enter = f"echo $$ > {group}/tasks"
        status, out, peak = train(enter, "--threads", "2", "--batch-size", "96")
        assert status == 0, out
        assert 300 * 2**20 < peak < 600 * 2**20
        status, out, peak = train(enter, "--threads", "2", "--batch-size", "192")
        assert status == 2
        assert "the cpu has 600 MiB; lower --batch-size" in out
        assert peak < 200 * 2**20
    finally:
        group.rmdir()


@pytest.mark.long
@pytest.mark.program
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the addresses of a process for others to read")
def test_limits_of_addresses_end_in_one_line_or_not_at_all(train):
    """For any `ulimit -v`, a run that starts also finishes."""
    statuses = []
    for mebibytes in range(350, 1000, 50):
        status, out, _ = train(f"ulimit -v {mebibytes * 1024}", "--threads", "2")
        assert status in (0, 2), f"{mebibytes} MiB: {out}"
        assert "Traceback" not in out
        if status == 2:
            assert "; lower --" in out.splitlines()[-1]
            assert not any(line.startswith("step") for line in out.splitlines())
        statuses.append(status)
    assert statuses == sorted(statuses, reverse=True)
    assert set(statuses) == {0, 2}


MIB = 2**20


@pytest.fixture
def process(monkeypatch, tmp_path):
    """Set `ulimit -v` and `-d` and what /proc says of this process, in MiB; returns available_memory, on a machine of 64 GiB."""
    resource = pytest.importorskip("resource", reason="this system has no ulimit")
    read_text = Path.read_text

    def set_up(ulimit_v=None, ulimit_d=None, status=None):
        soft = {resource.RLIMIT_AS: ulimit_v, resource.RLIMIT_DATA: ulimit_d}

        def read(path, *args, **options):
            if path != Path("/proc/self/status"):
                return read_text(path, *args, **options)
            if status is None:
                raise FileNotFoundError(path)
            return "Name:\tpython\n" + "".join(f"{field}:\t{mib * 1024} kB\n" for field, mib in status.items())

        monkeypatch.setattr(
            resource, "getrlimit", lambda of: (resource.RLIM_INFINITY if soft[of] is None else soft[of] * MIB, 2**50)
        )
        monkeypatch.setattr(Path, "read_text", read)
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}.__getitem__)
        return lambda **options: limits.available_memory(tmp_path, **options)

    return set_up


STATUS = {"VmPeak": 900, "VmSize": 500, "VmRSS": 200, "VmData": 350}


def test_the_limits_of_the_shell_count_addresses(process):
    """What is reserved and not used, and what threads will reserve, is taken off."""
    assert process(status=STATUS)() == 64 * GIB
    assert process(ulimit_v=1000, status=STATUS)() == (1000 - 300) * MIB
    assert process(ulimit_v=1000, status=STATUS)(threads=2) == (1000 - 300) * MIB - 2 * limits.THREAD_ADDRESSES
    assert process(ulimit_d=800, status=STATUS)(threads=2) == (800 - 150) * MIB
    assert process(ulimit_v=1000, ulimit_d=800, status=STATUS)() == (800 - 150) * MIB
    assert process(ulimit_v=100, status=STATUS)() == 0
    assert process(ulimit_v=1000, status=STATUS | {"VmRSS": 600})() == 1000 * MIB


@pytest.mark.parametrize("status", [None, {}, {"VmSizeOfAll": 7}])
def test_a_system_that_says_nothing_of_a_process(status, process):
    assert process(ulimit_v=1000, status=status)() == 1000 * MIB
    assert limits.memory_in_use() == 0


def test_memory_in_use(process):
    process(status=STATUS)
    assert limits.memory_in_use() == 200 * MIB


def test_a_machine_that_does_not_say_its_memory(process, monkeypatch):
    available = process(status=STATUS)
    monkeypatch.setattr(os, "sysconf", failing(ValueError("unrecognized configuration name")))
    assert available() is None


@pytest.mark.parametrize(("cores", "expected"), [(6, 6), (None, 1)])
def test_a_system_without_affinity_counts_its_cores(cores, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert limits.processors(tmp_path) == expected


@pytest.mark.skipif(os.name == "nt", reason="no folder of Windows has a colon in its name")
def test_control_groups_with_colons_in_their_names_and_after_other_controllers(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_physical_memory", lambda: 64 * GIB)
    monkeypatch.setattr(limits, "_shell_limits", lambda _: iter(()))
    lines = "9:cpuset:/a:b\n4:memory:/system:docker:ab\n1:name=systemd:/\n0::/a\n"
    found = {"sys/fs/cgroup/memory/system:docker:ab/memory.limit_in_bytes": "3000000\n"}
    assert limits.available_memory(tree(tmp_path, {"proc/self/cgroup": lines} | found)) == 3000000


def test_a_quota_over_no_period_is_none(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert limits.processors(tree(tmp_path, V2 | {"sys/fs/cgroup/cpu.max": "100000 0\n"})) == 8
