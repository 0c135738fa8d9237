"""Ctrl-C and other signals that ask a run to end: it finishes its step, saves and ends by itself."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ASK_TO_END = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # Ctrl-C, kill, a terminal that closed, Ctrl-Break on Windows


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Within the block, append these signals to the list that it yields, instead of ending in the middle of a step.

    A second signal acts at once. SIGHUP stays ignored where it was ignored before, as `nohup` arranges it.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield caught
        return
    signals = [getattr(signal, name) for name in ASK_TO_END if hasattr(signal, name)]
    before: dict[int, Any] = {number: signal.getsignal(number) for number in signals}
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
