"""Signals that ask a run to end: noted, so that it can finish its step, save and end by itself."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ASK_TO_END = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # Ctrl-C, kill, a terminal that closed, Ctrl-Break on Windows


@contextmanager
def noted() -> Iterator[list[int]]:
    """Within the block, note these signals in the list that it is given instead of dying in the middle of a step.

    A second one acts at once. SIGHUP stays ignored where it was ignored before, as `nohup` arranges it.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield caught
        return
    numbers = [getattr(signal, name) for name in ASK_TO_END if hasattr(signal, name)]
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    if hasattr(signal, "SIGHUP") and before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]

    def note(number: int, _frame: Any) -> None:
        caught.append(number)
        at_once = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, at_once if before[number] in (None, signal.SIG_IGN) else before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
