"""A run's folder: locked while a run writes in it; an earlier run is moved aside, never overwritten."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt import files
from gpt.console import note
from gpt.errors import CheckpointError, TrainingError

METRICS, PLOT = "metrics.jsonl", "loss.png"
BEST, LAST = "best.safetensors", "last.safetensors"
MAX_VALUE = 1e300  # of a value in a record: neither infinite nor NaN
LOCK_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # what flock reports when another process has the lock


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint with the lowest validation loss so far."""
    return folder / BEST


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint to go on from."""
    return folder / LAST


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. Where the file system has no locks, a note says so.

    Raises TrainingError when another process that is alive holds it, CheckpointError when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+", encoding="ascii")  # noqa: SIM115  (held for the whole run)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}; choose another --out") from error
    with lock:
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
        try:
            lock.seek(0)
            lock.truncate()
            lock.write(str(os.getpid()))
            lock.flush()
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written: {error.strerror}; free space or choose another --out") from error
        for name in (BEST, LAST, METRICS, PLOT):
            for orphan in folder.glob(f"{name}.tmp-*"):  # left by a process that was killed while it wrote
                with contextlib.suppress(OSError):
                    orphan.unlink()
        yield


def archive_previous(folder: Path) -> Path | None:
    """Move an earlier run's files into `folder/earlier-N`; return that folder, or None when there was no run."""
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
    """Return the newest file of this name, BEST or LAST, in the folders below `runs`; None where there is none."""
    return max(runs.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime, default=None)


def read_metrics(folder: Path, up_to: int) -> list[dict[str, Any]]:
    """Return the records of an earlier stretch of a run, up to a step.

    A line that is no record is left out, as is one whose step is not above the step before it. A note counts them, and the file as
    it was is kept under another name.
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
    """The record on one line, or None where there is none: an object with a step, two losses and a time."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    values: list[Any] = [record.get(name) for name in ("step", "train_loss", "val_loss", "elapsed_s")]
    return record if all(type(n) in (int, float) and abs(n) < MAX_VALUE for n in values) else None


def write_metrics(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write all records, one JSON object per line; a crash leaves the earlier file whole. Raises CheckpointError."""
    partial = folder / f"{METRICS}.tmp-{os.getpid()}"
    try:
        partial.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        files.replace(partial, folder / METRICS)
    except OSError as error:
        raise CheckpointError(f"{folder / METRICS} cannot be written: {error.strerror}") from error
