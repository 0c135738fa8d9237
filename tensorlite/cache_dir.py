"""Files worth keeping from run to run: the corpus, compiled kernels, timed choices. To lose one costs time alone."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """$TENSORLITE_CACHE, or tensorlite/ where caches are: $XDG_CACHE_HOME or ~/.cache.

    A user without a home gets a folder among the temporary ones, which nobody else can write into.
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
        return Path(tempfile.mkdtemp(prefix="tensorlite-")) if user and folder.stat().st_uid != user else folder
    except OSError:
        return Path(os.devnull) / "tensorlite"  # nothing can be kept there: all that it would cost is time


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, whatever other processes do. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".tmp-{secrets.token_hex(8)}")  # another process's number may be the same on another host
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep out other processes that ask for the same path, where the file system has locks. A lock ends with its process."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # Windows has no fcntl, and some file systems have no locks
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(path.with_suffix(".lock").open("w")), fcntl.LOCK_EX)
        yield
