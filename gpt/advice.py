"""Commands to paste: what a run prints so that a user can go on with it."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def resume_command(out: Path, flags: Sequence[str], ranks: int = 1) -> str:
    """Return the line for a shell that goes on with the run in a folder, started the way this process was.

    flags: those of this run that its checkpoint does not hold.
    """
    launcher = ["mpiexec", "-n", str(ranks)] if ranks > 1 else []
    return " ".join(shell_word(word) for word in [*launcher, *_program(), "--resume", "--out", str(out), *flags])


def _program() -> list[str]:
    """The words that started this program, as they were typed: python, its options, and the script or -m and the module."""
    words, spec = sys.orig_argv, getattr(sys.modules["__main__"], "__spec__", None)
    started = spec.name if spec is not None and spec.name in words else sys.argv[0]
    return words[: words.index(started) + 1] if started in words else ["python", sys.argv[0]]


def shell_word(word: str) -> str:
    """Quote a word for a shell, one with bytes that are no UTF-8 (a file name may have them) included."""
    if sys.platform == "win32":
        return subprocess.list2cmdline([word])
    try:
        word.encode()
    except UnicodeEncodeError:
        raw = word.encode(errors="surrogateescape")
        return "$'" + "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in raw) + "'"
    return shlex.quote(word)
