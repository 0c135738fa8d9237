"""Ctrl-C and other signals that ask a run to end: it finishes its step, saves and ends by itself."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpt import console

ASK_TO_END = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # Ctrl-C, kill, a terminal that closed, Ctrl-Break on Windows
SIGPIPE = 13  # Windows has no name for it


class StopRequest:
    """Whether this process is asked to end its run: by a signal, or because the reader of standard output has left."""

    def __init__(self) -> None:
        self.signals: list[int] = []  # in the order in which they were caught

    def is_set(self) -> bool:
        return bool(self.signals) or console.reader_gone()

    def signal(self) -> int:
        """Return the signal that ended the run: SIGPIPE stands for a reader that has left, SIGTERM for another rank's request."""
        if self.signals:
            return self.signals[0]
        return SIGPIPE if console.reader_gone() else signal.SIGTERM


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Within the block, add the signals of ASK_TO_END to the request that it yields, instead of ending in the middle of a step.

    A second signal acts at once. SIGHUP stays ignored if it was ignored before, as `nohup` arranges it.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield request
        return
    signals = [getattr(signal, name) for name in ASK_TO_END if hasattr(signal, name)]
    before: dict[int, Any] = {number: signal.getsignal(number) for number in signals}
    if hasattr(signal, "SIGHUP") and before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]

    def catch(number: int, _frame: Any) -> None:
        request.signals.append(number)
        at_once = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, at_once if before[number] in (None, signal.SIG_IGN) else before[number])

    for number in before:
        signal.signal(number, catch)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
