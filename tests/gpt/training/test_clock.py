"""The clock of a run: a resumed run continues its time. Its speed is that of training steps only."""

import time

from gpt.training.clock import RunClock


def test_a_clock_tells_the_time_of_steps_from_that_of_the_run(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = RunClock(tokens_per_step=30, elapsed_before=7.0, started=now[0])
    assert clock.tokens_per_second == 0.0
    for _ in range(4):
        with clock.training_step():
            now[0] += 1.5
        now[0] += 10.0  # an evaluation
    assert clock.tokens_per_second == 30 / 1.5
    assert clock.elapsed == 7.0 + 4 * 11.5
