"""The cache folder for downloads, compiled kernels and timings. Losing a file in it only costs time."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """Return $TENSORLITE_CACHE, or the folder tensorlite/ in $XDG_CACHE_HOME or ~/.cache.

    A user without a home folder gets a temporary folder into which no other user can write.
    """
    if own := os.environ.get("TENSORLITE_CACHE"):
        return Path(own)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "tensorlite"
    try:
        return Path.home() / ".cache" / "tensorlite"
    except RuntimeError:
        return _private_temporary_folder()


def _private_temporary_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        folder = Path(tempfile.gettempdir()) / f"tensorlite-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.stat()
        if hasattr(os, "getuid") and (about.st_uid != user or about.st_mode & 0o022):  # another user was faster
            return Path(tempfile.mkdtemp(prefix="tensorlite-"))
        return folder
    except OSError:
        return Path(os.devnull) / "tensorlite"  # every write there fails, which only costs time


def write_whole(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all, even if other processes write it too. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".tmp-{secrets.token_hex(8)}")  # not the process id, which may be the same on another host
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep out other processes that lock the same path, if the file system has locks. A lock ends with its process."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # Windows has no fcntl, and some file systems have no locks
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(path.with_suffix(".lock").open("w")), fcntl.LOCK_EX)
        yield
