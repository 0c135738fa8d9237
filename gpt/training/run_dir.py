"""A run's folder: its files, its lock, and how an earlier run is moved aside."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from gpt import files
from gpt.console import note
from gpt.errors import CheckpointError, TrainingError

METRICS, PLOT = "metrics.jsonl", "loss.png"
BEST, LAST = "best.safetensors", "last.safetensors"
MAX_VALUE = 1e300  # values in a record are below it, so neither infinite nor NaN
LOCK_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # what flock reports when another process has the lock


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint with the lowest validation loss so far."""
    return folder / BEST


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint to go on from."""
    return folder / LAST


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process, and remove the temporary files that a killed process has left in it.

    If the file system has no locks, a note says so.

    Raises TrainingError if another live process has locked the folder, and CheckpointError if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+", encoding="ascii")  # noqa: SIM115  (held for the whole run)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}; choose another --out") from error
    with lock:
        _take(lock, folder)
        _write_pid(lock, folder)
        _remove_orphans(folder)
        yield


def _take(lock: TextIO, folder: Path) -> None:
    """Lock the lock file, or raise TrainingError with the process that has locked it."""
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # this platform has no flock, so runs are not protected against each other
        pass
    except OSError as error:
        if error.errno in LOCK_TAKEN:
            lock.seek(0)
            raise TrainingError(f"{folder} is in use by process {lock.read().strip() or '?'}; choose another --out") from error
        note(f"{folder} cannot be locked ({error.strerror}): see that no other run writes into it")


def _write_pid(lock: TextIO, folder: Path) -> None:
    try:  # without a buffer, which would be written once more when the file is closed
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), str(os.getpid()).encode())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}; free space or choose another --out") from error


def _remove_orphans(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for name in (BEST, LAST, METRICS, PLOT):
        for orphan in folder.glob(f"{name}.tmp-*"):
            with contextlib.suppress(OSError):
                orphan.unlink()


def archive_previous(folder: Path) -> Path | None:
    """Move an earlier run's files into `folder/earlier-N`. Return that folder, or None if there was no run.

    Raises CheckpointError if they cannot be moved.
    """
    found = [folder / name for name in (BEST, LAST, METRICS, PLOT) if (folder / name).exists()]
    if not found:
        return None
    n = 1
    while (folder / f"earlier-{n}").exists():
        n += 1
    target = folder / f"earlier-{n}"
    try:
        target.mkdir()
        for file in found:
            files.replace(file, target / file.name)
    except OSError as error:
        raise CheckpointError(f"the earlier run in {folder} cannot be moved: {error.strerror}; choose another --out") from error
    return target


def newest(runs: Path, name: str) -> Path | None:
    """Return the newest file of this name, BEST or LAST, in the folders below `runs`, or None if there is none."""
    times: dict[Path, float] = {}
    for path in runs.glob(f"*/{name}"):
        with contextlib.suppress(OSError):  # moved away by a run that has just begun
            times[path] = path.stat().st_mtime
    return max(times, key=times.__getitem__, default=None)


def read_metrics(folder: Path, up_to: int) -> list[dict[str, Any]]:
    """Return the records that a resumed run has left, up to and including a step.

    A line that is no record is left out, as is a record whose step is not above the one before it. A note counts these lines, and
    a copy of the file stays under another name. A file that cannot be read costs a note, and there are no records then.
    """
    path = folder / METRICS
    if path.exists() and not path.is_file():
        note(f"{path} is no file: the log begins anew")
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        note(f"{path} cannot be read ({error.strerror}): the log begins anew")
        return []
    records: list[dict[str, Any]] = []
    n_bad = 0
    for line in filter(str.strip, lines):
        record = _parse_record(line)
        if record is None or (records and record["step"] <= records[-1]["step"]):
            n_bad += 1
        else:
            records.append(record)
    if n_bad:
        copy = path.with_name(f"{METRICS}.damaged")
        with contextlib.suppress(OSError):
            shutil.copyfile(path, copy)
        note(f"{path}: {n_bad} of its lines are no records of a run and are left out; {copy.name} is the file as it was")
    return [record for record in records if record["step"] <= up_to]


def _parse_record(line: str) -> dict[str, Any] | None:
    """Return the record on a line, or None if it is none. A record is an object with a step, two losses and a time."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    for name in ("step", "train_loss", "val_loss", "elapsed_s"):
        value: Any = record.get(name)
        if type(value) not in (int, float) or not abs(value) < MAX_VALUE:
            return None
    return record


def write_metrics(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write all records, one JSON object per line. A crash leaves the earlier file whole.

    Raises CheckpointError if the file cannot be written.
    """
    partial = folder / f"{METRICS}.tmp-{os.getpid()}"
    try:
        partial.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        files.replace(partial, folder / METRICS)
    except OSError as error:
        raise CheckpointError(f"{folder / METRICS} cannot be written: {error.strerror}") from error
