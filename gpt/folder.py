"""A run's folder: one run at a time writes in it, and an earlier run in it is moved aside, never overwritten."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.errors import CheckpointError, TrainingError

METRICS = "metrics.jsonl"


def best_path(folder: Path) -> Path:
    """The checkpoint with the lowest validation loss so far."""
    return folder / "best.safetensors"


def last_path(folder: Path) -> Path:
    """The checkpoint to go on from."""
    return folder / "last.safetensors"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. Raises TrainingError when another process that is alive holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+", encoding="ascii")  # noqa: SIM115  (held for the whole run)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}; choose another --out") from error
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # a system without flock: no protection, as no file would be honest
            pass
        except OSError as error:
            lock.seek(0)
            raise TrainingError(f"{folder} is in use by process {lock.read().strip() or '?'}; choose another --out") from error
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        for orphan in folder.glob("*.safetensors.tmp-*"):  # left by a process that was killed while it wrote
            orphan.unlink(missing_ok=True)
        yield


def move_aside(folder: Path) -> Path | None:
    """Move an earlier run's files into `folder/earlier-N`; return that folder, or None when there was no run."""
    names = (best_path(folder).name, last_path(folder).name, METRICS, "loss.png")
    files = [folder / name for name in names if (folder / name).exists()]
    if not files:
        return None
    n = 1
    while (folder / f"earlier-{n}").exists():
        n += 1
    target = folder / f"earlier-{n}"
    try:
        target.mkdir()
        for file in files:
            file.rename(target / file.name)
    except OSError as error:
        raise CheckpointError(f"the earlier run in {folder} cannot be moved: {error.strerror}; choose another --out") from error
    return target


def read_metrics(folder: Path, up_to: int) -> list[dict[str, Any]]:
    """The records of an earlier stretch of a run, up to a step; a line that a crash cut short is left out."""
    records = []
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / METRICS).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                record = json.loads(line)
                if record["step"] <= up_to:
                    records.append(record)
    return records


def write_metrics(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write all records, one JSON object a line; a crash leaves the earlier file whole."""
    partial = folder / f"{METRICS}.tmp"
    try:
        partial.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        partial.replace(folder / METRICS)
    except OSError as error:
        raise CheckpointError(f"{folder / METRICS} cannot be written: {error.strerror}; free space and use --resume") from error
