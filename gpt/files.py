"""Atomic replacement and flushing of files, on file systems that differ in what they support."""

import errno
import os
import time
from pathlib import Path

from gpt.console import note

RETRYABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EBUSY,
    errno.ETXTBSY,
}  # a virus scanner or a viewer may have the file open for a moment
FSYNC_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM}
RETRY_DELAYS_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # between attempts to rename


def replace(source: Path, target: Path) -> None:
    """Rename `source` over `target`. An error that may pass is retried for three seconds. Raises OSError."""
    for delay in RETRY_DELAYS_S:
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno not in RETRYABLE:
                raise
        else:
            return
        time.sleep(delay)
    os.replace(source, target)


def flush_to_disk(descriptor: int, path: Path) -> None:
    """Call fsync. If the file system does not support it, print a note. Raises OSError if the disk fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in FSYNC_UNSUPPORTED:
            raise
        note(f"{path.parent} cannot be flushed to the disk ({error.strerror}): a power failure may lose the last writes")
