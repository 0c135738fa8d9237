"""Standard output, standard error and exit status of the commands.

No console, whatever its state or encoding, ends a run or hides how it ended.
"""

import contextlib
import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt.errors import UserError
from tensorlite import DeviceError, device_failure

READER_GONE = 141  # 128 + SIGPIPE, what a shell reports of a program whose reader has left
DEBUG = "TENSORLITE_DEBUG"

_noted: set[str] = set()


def note(text: str) -> None:
    """Print a note, above a progress bar where one is shown. The same note is printed once."""
    if text not in _noted:
        _noted.add(text)
        tqdm.write(f"note     {text}")


class Outlet:
    """A text stream that keeps the error of a failed write instead of raising it: a full disk costs the words, not the run."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None
        self.last_line = ""

    def write(self, text: str) -> int:
        """Write what can be written."""
        self.last_line = text.strip().rpartition("\n")[2] or self.last_line
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        self._attempt(self.stream.flush)

    def _attempt(self, call: Any, *args: Any) -> None:
        try:
            call(*args)
        except OSError as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def set_up() -> None:
    """Make standard output and standard error safe to print to. Called once, when a command line starts.

    A character that the console's encoding lacks is printed escaped. What is printed to a closed standard output goes to standard
    error. The three standard descriptors are opened if they are closed: the next file would take their number, and whatever a
    library prints would land in that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for as long as the process lives)
    if sys.stdout is None:
        sys.stdout = sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
        setattr(sys, name, Outlet(stream))


def reader_gone() -> bool:
    """Whether the reader of standard output, `head` for example, has left."""
    return isinstance(sys.stdout, Outlet) and isinstance(sys.stdout.error, BrokenPipeError)


def finish(status: int) -> int:
    """Return the exit status of a command that is over: its own, or that of a standard output which lost some of its words.

    In that case the last line of them is repeated on standard error.
    """
    outlets = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Outlet)]
    for outlet in outlets:
        outlet.flush()
    if outlets and outlets[0].error is not None:
        lost = outlets[0].error
        print(outlets[0].last_line, f"error: standard output cannot be written: {lost.strerror}", sep="\n", file=sys.stderr)
        status = status or (READER_GONE if lost.errno == errno.EPIPE else 1)
    for outlet in outlets:
        if outlet.error is not None:
            _discard(outlet)
    return status


def _discard(stream: Any) -> None:
    """Send what is left in the stream's buffer nowhere: else the interpreter would fail to flush it and change the exit status."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def explain(error: BaseException, out_of_memory: str) -> tuple[str, int]:
    """Return the line to print and the exit status for what ended a command.

    out_of_memory: the line for a MemoryError, with {} in the place of its own words.
    """
    failure = device_failure(error) if isinstance(error, Exception) else None
    error = failure or error
    if isinstance(error, UserError | DeviceError):
        return f"error: {error}", 2
    if isinstance(error, MemoryError):
        return "error: " + out_of_memory.format(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "stopped; the checkpoints written so far are whole", 130
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "error: threads: the system starts no more of them (see ulimit -u and ulimit -v); lower --threads", 2
    if os.environ.get(DEBUG):
        return "".join(traceback.format_exception(error)), 1
    where = traceback.extract_tb(error.__traceback__)[-1]
    at = f"{Path(where.filename).name}:{where.lineno}"
    return f"error: this is a defect of tensorlite: {type(error).__name__}: {error} (at {at}); {DEBUG}=1 prints the traceback", 1
