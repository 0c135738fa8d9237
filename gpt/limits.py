"""The memory and the processors that the container, shell and scheduler allow this process."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path("/")
KIB = 1024
THREAD_ADDRESSES = 72 * 2**20  # bytes that glibc reserves per thread for a stack and a heap; most of them are never used


def available_memory(root: Path = ROOT, threads: int = 0) -> int | None:
    """Return the bytes that this process may use in total, including those it already uses. None: the system does not say.

    This is the smallest of the machine's memory, the limits of the process's control groups (versions 1 and 2), and `ulimit -v`
    and `ulimit -d`. Those two limit addresses, not memory in use, so addresses that are reserved but unused are subtracted.

    root: the folder that contains /proc and /sys.
    threads: number of threads that are yet to be started.
    """
    of_groups = _group_limits(root, "memory", names=("memory.max", "memory.limit_in_bytes"))
    limits = [limit for limit in (_physical_memory(), *of_groups) if limit]
    return min([*limits, *_shell_limits(threads)], default=None)


def memory_in_use() -> int:
    """Return the bytes of memory that this process uses now. 0: the system does not say."""
    return _status("VmRSS")


def processors(root: Path = ROOT) -> int:
    """Return how many threads can compute at once.

    This is the smallest of the number of cores that this process may run on, the quotas of its control groups, and
    OMP_NUM_THREADS.

    root: the folder that contains /proc and /sys.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [cores, *map(int, _cpu_quotas(root))]
    wish = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2": 4 threads, and 2 within each of them
    if wish.isdigit():
        limits.append(int(wish))
    return max(1, min(limits))


def _physical_memory() -> int | None:
    if sys.platform == "win32":
        return _windows_memory(ctypes.windll.kernel32)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _windows_memory(kernel32: Any) -> int | None:
    """Return the bytes of memory that GlobalMemoryStatusEx counts, None if it fails."""
    sizes = ("total", "free", "total_pages", "free_pages", "total_addresses", "free_addresses", "free_extended")
    fields = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32), *((name, ctypes.c_uint64) for name in sizes)]
    status = type("MEMORYSTATUSEX", (ctypes.Structure,), {"_fields_": fields})()
    status.length = ctypes.sizeof(status)
    return status.total if kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _shell_limits(threads: int) -> Iterator[int]:
    """Yield the bytes that `ulimit -v` and `ulimit -d` leave for memory in use."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for limit, counted, future in ((resource.RLIMIT_AS, "VmSize", threads * THREAD_ADDRESSES), (resource.RLIMIT_DATA, "VmData", 0)):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            unused = max(0, _status(counted) - memory_in_use())
            yield max(0, most - unused - future)


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes. 0: there is no such field."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith(field + ":")), 0)


def _group_limits(root: Path, controller: str, names: tuple[str, ...]) -> Iterator[int]:
    """Yield the integers in the files of these names, in the process's control group and in every enclosing one."""
    for folder in _groups(root, controller):
        for name in names:
            text = _read(folder / name)
            if text.isdigit():  # "max" is no limit
                yield int(text)


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yield the processors that each control group allows: its quota of microseconds divided by the period."""
    for folder in _groups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota = _read(folder / "cpu.cfs_quota_us")
            period = _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1 are no limit
            yield int(quota) / int(period)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of its enclosing groups, for one controller.

    A line of /proc/self/cgroup is "4:memory:/path" for version 1 and "0::/path" for version 2. In a container the path may be
    one of the host, and the limits are at the top of the mount, so the top is included.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        elif number == "0" and not controllers:
            mount = root / "sys/fs/cgroup"
        else:
            continue
        inner = mount / path.lstrip("/")
        yield from [folder for folder in (inner, *inner.parents) if folder == mount or mount in folder.parents]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
