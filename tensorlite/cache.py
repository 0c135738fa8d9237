"""Files worth keeping from run to run: the corpus, compiled kernels, timed choices. To lose one costs time alone."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$TENSORLITE_CACHE, or tensorlite/ where caches are: $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("TENSORLITE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tensorlite"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, whatever other processes do. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".tmp-{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)
