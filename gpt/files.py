"""Atomic replacement and flushing of files, on file systems that are not all alike."""

import errno
import os
import time
from pathlib import Path

from gpt.console import note

RETRYABLE = {errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY}  # a virus scanner or a viewer has the file open: it will let go
FSYNC_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM}
RETRY_DELAYS_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # between two tries to rename


def replace(source: Path, target: Path) -> None:
    """Rename `source` over `target`. A refusal that may pass is waited for, three seconds in all; then it is raised as OSError."""
    for delay in RETRY_DELAYS_S:
        try:
            return os.replace(source, target)
        except OSError as error:
            if error.errno not in RETRYABLE:
                raise
        time.sleep(delay)
    return os.replace(source, target)


def flush_to_disk(descriptor: int, path: Path) -> None:
    """fsync. A file system that has none costs a note; an error of the disk is raised as OSError."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in FSYNC_UNSUPPORTED:
            raise
        note(f"{path.parent} cannot be flushed to the disk ({error.strerror}): a power failure may lose what was written last")
