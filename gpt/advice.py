"""Commands that a run prints, so that a user can paste them into a shell to continue."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def resume_command(out: Path, flags: Sequence[str], ranks: int = 1) -> str:
    """Return the shell command that continues the run in a folder, started in the way this process was.

    flags: flags of this run that its checkpoint does not hold.
    ranks: processes under mpiexec; 1: without mpiexec.
    """
    launcher = ["mpiexec", "-n", str(ranks)] if ranks > 1 else []
    words = [*launcher, *_program(), "--resume", "--out", str(out), *flags]
    return " ".join(map(shell_word, words))


def _program() -> list[str]:
    """Return the words that started this program, as typed: python, its options, and the script, or -m and the module."""
    words = sys.orig_argv
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = spec.name if spec is not None and spec.name in words else sys.argv[0]
    if started not in words:
        return ["python", sys.argv[0]]
    return words[: words.index(started) + 1]


def shell_word(word: str) -> str:
    """Quote a word for a shell. It may contain bytes that are not UTF-8, as a file name may."""
    if sys.platform == "win32":
        return subprocess.list2cmdline([word])
    try:
        word.encode()
    except UnicodeEncodeError:
        return "$'" + "".join(map(_escaped, word.encode(errors="surrogateescape"))) + "'"
    return shlex.quote(word)


def _escaped(byte: int) -> str:
    """Return one byte as it is written within $'...'."""
    printable = 32 <= byte < 127 and byte not in b"'\\"
    return chr(byte) if printable else f"\\x{byte:02x}"
