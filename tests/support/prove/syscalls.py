"""A save is killed before and after each of its system calls, and each of them fails with each error a disk can give.

A warm process forks the one that saves; strace attaches to it, so that its counts begin with the save. What must hold afterwards:
`best` and `last` are whole, each the old checkpoint or the new one, `last` never newer than `best`; a failed save says so in a
CheckpointError unless the new one is there; and the next start sweeps what was left.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from gpt.errors import CheckpointError
from gpt.training import checkpoint, run_dir
from prove.subject import MODELS_OF, checkpoint_of

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EACCES", "EINTR")
MEMORY_CALLS = ("brk", "mmap", "munmap", "mremap", "madvise", "futex", "getpid", "rt_sigaction", "exit_group")  # no file is in them
OLD, NEW = (checkpoint_of(MODELS_OF["gpt"], step) for step in (1, 2))
SAVED, FAILED, BROKEN = 0, 3, 4  # exit statuses of the process that saves


def start_over(out: Path) -> None:
    """Both names hold the old checkpoint."""
    shutil.rmtree(out, ignore_errors=True)
    checkpoint.save(run_dir.best_checkpoint(out), OLD)
    checkpoint.link_or_copy(run_dir.best_checkpoint(out), run_dir.last_checkpoint(out))


def save_once(out: Path, gate: int, ready: int) -> None:
    """In the forked process: say that it waits for strace, then save the new checkpoint as a run does, under both names."""
    status = SAVED
    try:
        os.write(ready, b".")
        os.read(gate, 1)
        checkpoint.save(run_dir.best_checkpoint(out), NEW)
        checkpoint.link_or_copy(run_dir.best_checkpoint(out), run_dir.last_checkpoint(out))
    except CheckpointError:
        status = FAILED
    except BaseException:
        status = BROKEN
    os._exit(status)


def traced(out: Path, *options: str) -> tuple[int, str]:
    """Save under strace. Returns the wait status of the process that saved, and the log of its system calls."""
    (gate, open_gate), (waiting, ready) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        save_once(out, gate, ready)
    os.read(waiting, 1)  # else strace would also count what comes before, and let some of that fail
    log = out.parent / "strace.log"
    command = ["strace", "-f", "-o", str(log), "-p", str(pid), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        said = strace.stderr.readline()  # "strace: Process 123 attached", or why not
        if "attached" not in said:
            os.kill(pid, signal.SIGKILL)
        os.write(open_gate, b".")
        _, status = os.waitpid(pid, 0)
        strace.wait()
    for end in (gate, open_gate, waiting, ready):
        os.close(end)
    if "attached" not in said:
        raise PermissionError(said.strip())
    return status, log.read_text()


def calls_of_a_save(out: Path) -> list[tuple[str, int]]:
    """The system calls of an undisturbed save, from the first that names its folder: (name, how many of that name so far)."""
    start_over(out)
    status, log = traced(out)
    assert status == SAVED, log
    lines = [line for line in log.splitlines() if re.match(r"\d+ +\w+\(", line)]
    first = next(i for i, line in enumerate(lines) if str(out) in line)
    counts: Counter[str] = Counter()
    calls = []
    for i, line in enumerate(lines):
        name = line.split("(")[0].split()[1]
        counts[name] += 1
        if i >= first:
            calls.append((name, counts[name]))
    order = " ".join(name for name, _ in calls)  # a kill cannot tell what a lost power supply would: what is flushed, and when
    assert re.search(r"write .*\bfsync .*\brename.*\bfsync .*\brename.*\bfsync", order), order
    return calls


def check(out: Path, case: str) -> str:
    """What the two names hold now, "old" or "new" each; the next start leaves nothing else."""
    found = []
    for path in (run_dir.best_checkpoint(out), run_dir.last_checkpoint(out)):
        step = checkpoint.load(path).step
        assert step in (OLD.step, NEW.step), case
        found.append("new" if step == NEW.step else "old")
    assert found != ["old", "new"], f"{case}: last is newer than best"
    with run_dir.locked(out):
        left = sorted(path.name for path in out.iterdir() if path.name != ".lock")
        assert left == ["best.safetensors", "last.safetensors"], f"{case}: {left}"
    return " and ".join(found)


def killed(out: Path, name: str, n: int) -> str:
    """Kill it as it enters its n-th call of this name, which is when it has left the call before."""
    start_over(out)
    status, _ = traced(out, f"--inject={name}:signal=KILL:when={n}")
    assert os.WIFSIGNALED(status), f"{name} {n}: not killed"
    assert os.WTERMSIG(status) == signal.SIGKILL, f"{name} {n}"
    return f"killed: {check(out, f'killed at {name} {n}')}"


def failing(out: Path, name: str, n: int, error: str) -> str:
    """Let that one call fail."""
    start_over(out)
    status, _ = traced(out, f"--inject={name}:error={error}:when={n}")
    case = f"{name} {n} {error}"
    assert os.WIFEXITED(status), f"{case}: killed"
    assert os.WEXITSTATUS(status) in (SAVED, FAILED), f"{case}: another exception than CheckpointError"
    assert not list(out.glob("*.tmp-*")), f"{case}: the temporary was left"
    found = check(out, case)
    if os.WEXITSTATUS(status) == SAVED:
        assert found == "new and new", f"{case}: nothing was said, but the new checkpoint is not there"
        return "failing: not needed or tried again, new and new"
    return f"failing: CheckpointError, {found}"


def prove(errors: tuple[str, ...] = ERRORS) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "run"
        calls = calls_of_a_save(out)
        for name, n in calls:
            outcomes[killed(out, name, n)] += 1
            if name not in MEMORY_CALLS:
                outcomes.update(failing(out, name, n, error) for error in errors)
        outcomes["system calls in a save"] = len(calls)
    return outcomes


if __name__ == "__main__":
    if shutil.which("strace") is None:
        sys.exit("strace is not installed")
    started = time.perf_counter()
    try:
        outcomes = prove(tuple(sys.argv[1:]) or ERRORS)
    except PermissionError as error:
        sys.exit(f"strace may not attach here: {error}")
    print(f"syscalls: {time.perf_counter() - started:.0f} s: " + ", ".join(f"{what} {n}" for what, n in sorted(outcomes.items())))
