"""Standard output, standard error and exit status of the commands.

The state and encoding of the console never end a run, and never hide how it ended.
"""

import contextlib
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt.errors import UserError
from tensorlite import DeviceError, device_failure

READER_GONE = 141  # 128 + SIGPIPE: what a shell reports for a program whose reader has left
DEBUG = "TENSORLITE_DEBUG"

_noted: set[str] = set()


def note(text: str) -> None:
    """Print a note, above the progress bar if there is one. A repeated note is printed only once."""
    if text not in _noted:
        _noted.add(text)
        tqdm.write(f"note     {text}")


class Outlet:
    """A text stream that saves the error of a failed write instead of raising it: a full disk costs the output, not the run."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None
        self.last_line = ""

    def write(self, text: str) -> int:
        """Write the text if possible. Returns its length in any case."""
        self.last_line = text.strip().rpartition("\n")[2] or self.last_line
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        self._attempt(self.stream.flush)

    def _attempt(self, call: Callable[..., object], *args: str) -> None:
        try:
            call(*args)
        except OSError as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def set_up() -> None:
    """Make standard output and standard error safe to print to. Each command line calls this once, at its start.

    A character that the console's encoding lacks is printed as an escape sequence. If standard output is closed, prints go to
    standard error. Standard descriptors that are closed are opened. Otherwise the next file would get such a descriptor, and
    libraries would print into that file. Warnings of libraries, which quote source code, are not shown: a loss that overflows, say,
    ends the run with an error of its own.
    """
    if not sys.warnoptions:  # of python -W and PYTHONWARNINGS
        warnings.simplefilter("ignore")
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
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
    """Return whether the reader of standard output, for example `head`, has left."""
    return isinstance(sys.stdout, Outlet) and sys.stdout.error is not None and _is_broken_pipe(sys.stdout.error)


def _is_broken_pipe(error: OSError) -> bool:
    return error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL)  # what Windows says of it


def finish(status: int) -> int:
    """Return the exit status of a command that has ended.

    If standard output lost some of its text, a status of 0 becomes that failure, and the last line is repeated on standard error.
    """
    outlets = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Outlet)]
    for outlet in outlets:
        outlet.flush()
    if outlets and outlets[0].error is not None:
        lost = outlets[0].error
        print(outlets[0].last_line, f"error: standard output cannot be written: {lost.strerror}", sep="\n", file=sys.stderr)
        status = status or (READER_GONE if _is_broken_pipe(lost) else 1)
    for outlet in outlets:
        if outlet.error is not None:
            _discard(outlet)
    return status


def _discard(stream: "Outlet") -> None:
    """Discard the stream's buffer. Otherwise the interpreter would fail to flush it and change the exit status."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def run_command(command: Callable[[], int], out_of_memory: str) -> int:
    """Run a command line that ends at the first error or Ctrl-C, and return its exit status. An error is printed as one line.

    out_of_memory: as for explain.
    """
    set_up()
    try:
        return finish(command())
    except Exception as error:
        message, status = explain(error, out_of_memory)
    except KeyboardInterrupt:
        message, status = "", 130
    print(message, file=sys.stderr)
    return finish(status)


def explain(error: BaseException, out_of_memory: str) -> tuple[str, int]:
    """Return the line to print and the exit status for an error that ended a command.

    out_of_memory: the line for a MemoryError, with {} for the error's own text.
    """
    failure = device_failure(error) if isinstance(error, Exception) else None
    error = failure or error
    if isinstance(error, UserError | DeviceError):
        return f"error: {error}", 2
    if isinstance(error, MemoryError):
        return "error: " + out_of_memory.format(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "stopped; all checkpoints written so far are complete", 130
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "error: threads: the system cannot start more of them (see ulimit -u and ulimit -v); lower --threads", 2
    if os.environ.get(DEBUG):
        return "".join(traceback.format_exception(error)), 1
    where = traceback.extract_tb(error.__traceback__)[-1]
    at = f"{Path(where.filename).name}:{where.lineno}"
    return f"error: this is a bug in tensorlite: {type(error).__name__}: {error} (at {at}); {DEBUG}=1 prints the traceback", 1
