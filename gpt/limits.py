"""How much memory and how many processors this process may use: container, shell, scheduler."""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
KIB = 1024
THREAD_ADDRESSES = 72 * 2**20  # glibc reserves a stack and a heap of its own for each thread, most of it never used


def available_memory(root: Path = ROOT, threads: int = 0) -> int | None:
    """Bytes that this process may use in total, including what it already uses; None where the system does not say.

    The least of the machine's memory, the limits of its control groups (version 1 and 2), and `ulimit -v` and `-d`. Those two count
    addresses and not memory in use, so what is reserved and not used is taken off.
    root: where the files of the system are. threads: how many are still to be started.
    """
    limits = [
        limit for limit in (_physical_memory(), *_group_limits(root, "memory", ("memory.max", "memory.limit_in_bytes"))) if limit
    ]
    return min([*limits, *_shell_limits(threads)], default=None)


def memory_in_use() -> int:
    """Bytes of memory that this process holds now; 0 where the system does not say."""
    return _status("VmRSS")


def processors(root: Path = ROOT) -> int:
    """How many threads can compute at once: the least of the cores this process may run on, the quota of its control groups and
    OMP_NUM_THREADS. root: where the files of the system are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wish = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2": 4 threads, and 2 within each of them
    limits = [cores, *map(int, _cpu_quotas(root)), *([int(wish)] if wish.isdigit() else [])]
    return max(1, min(limits))


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _shell_limits(threads: int) -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave for memory in use."""
    try:
        import resource
    except ImportError:  # Windows
        return
    reserved = threads * THREAD_ADDRESSES
    for limit, counted, more in ((resource.RLIMIT_AS, "VmSize", reserved), (resource.RLIMIT_DATA, "VmData", 0)):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield max(0, most - max(0, _status(counted) - memory_in_use()) - more)


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith(field + ":")), 0)


def _group_limits(root: Path, controller: str, names: tuple[str, ...]) -> Iterator[int]:
    """The whole numbers in the files of these names, in the process's control group and in each one around it."""
    for folder in _groups(root, controller):
        for name in names:
            text = _read(folder / name)
            if text.isdigit():  # "max" is no limit
                yield int(text)


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Processors per control group: a quota of microseconds in each period of so many."""
    for folder in _groups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1 are no limit
            yield int(quota) / int(period)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group for a controller, and of those around it, in both versions' places.

    A line of /proc/self/cgroup is "4:memory:/path" for version 1, "0::/path" for version 2. Within a container the path may be one
    of the host's, and what applies stands at the top of the mount: so the top is looked at as well.
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
