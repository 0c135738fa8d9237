"""Signals: a run that is interrupted saves, and resumes as if it had never stopped."""

import signal
import threading

import numpy as np
import pytest

from gpt.training import evaluate, interrupts
from trainers import trainer, without_time


def test_an_evaluation_that_is_interrupted_is_done_again(corpus, tmp_path, monkeypatch):
    """The resumed run equals a straight one, bit for bit, its log included."""
    straight = trainer(corpus, tmp_path / "a")
    straight.run()
    for at in (0, 8):
        run = trainer(corpus, tmp_path / f"b{at}")
        real = evaluate.split_loss

        def interrupted(workers, *args, real=real, run=run, at=at):
            if run.state.step == at:
                signal.raise_signal(signal.SIGINT)
            return real(workers, *args)

        monkeypatch.setattr("gpt.training.trainer.split_loss", interrupted)
        assert run.run() == signal.SIGINT
        assert [r["step"] for r in run.history] == list(range(0, at, 4))
        monkeypatch.setattr("gpt.training.trainer.split_loss", real)
        resumed = trainer(corpus, tmp_path / f"b{at}", resume=True)
        assert resumed.run() is None
        assert without_time(resumed.history) == without_time(straight.history)
        np.testing.assert_array_equal(resumed.state.params, straight.state.params)


def test_a_long_evaluation_answers_a_signal_soon(corpus, tmp_path, monkeypatch):
    """Each of its pieces may take a moment; those that have not begun are left."""
    run = trainer(corpus, tmp_path / "a")
    forward, seen = run.task.model.forward, []

    def slow(*args, **options):
        seen.append(1)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return forward(*args, **options)

    monkeypatch.setattr(run.task.model, "forward", slow)
    assert run.run() == signal.SIGINT
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_second_signal_acts_at_once_and_ignored_hangups_stay_ignored(name):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"this system has no {name}")
    before = signal.getsignal(number)
    for handler in (signal.SIG_DFL, signal.SIG_IGN, before):
        signal.signal(number, handler)
        try:
            with interrupts.catch_signals() as stop:
                if name == "SIGHUP" and handler == signal.SIG_IGN:
                    signal.raise_signal(number)
                    assert stop.signals == []
                    continue
                signal.raise_signal(number)
                assert stop.signals == [number]
                at_once = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
                assert signal.getsignal(number) == (at_once if handler == signal.SIG_IGN else handler)  # a second one acts at once
            assert signal.getsignal(number) == handler
        finally:
            signal.signal(number, before)


@pytest.mark.parametrize(
    ("signals", "reader_gone", "ended_by"),
    [([], False, None), ([2, 15], False, 2), ([1], True, 1), ([], True, 13)],
)
def test_the_first_signal_ends_a_run_or_a_reader_that_has_left(signals, reader_gone, ended_by, monkeypatch):
    monkeypatch.setattr("gpt.console.reader_gone", lambda: reader_gone)
    stop = interrupts.StopRequest()
    stop.signals += signals
    assert stop.is_set() == (ended_by is not None)
    assert stop.signal() == (ended_by or signal.SIGTERM)  # without a request of its own a rank ends by another's


def test_in_a_thread_signals_stay_the_main_threads():
    found = []

    def inside():
        with interrupts.catch_signals() as stop:
            found.append(stop.signals)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [[]]
