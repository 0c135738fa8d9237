"""A run that a signal stops at a random step ends, once resumed, bitwise like an undisturbed one. It is stopped once or twice.

Model, dropout, schedule, accumulation, shards, threads and backend are drawn too. SIGINT, SIGTERM and SIGHUP must save at the very
step; SIGKILL comes a little later, in the middle of whatever there is, and the run goes on from what is on the disk.
"""

import functools
import os
import random
import shutil
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from gpt.training import checkpoint, run_dir
from prove.harness import draw, main, scratch
from prove.runs import BACKENDS, before_step, drawn, trainer
from prove.subject import equal

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL") if hasattr(signal, name))
FINISHED = 0


def forked(work: Callable[[], int]) -> int:
    """Do it in a process of its own. Returns its exit status, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored under nohup, and a run respects that
            status = work()
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(start: Callable, out: Path, stop: tuple[int, int, float] | None = None) -> int:
    """Begin or go on, and send yourself a signal (number, step, seconds later) on the way. Returns 0, or 128 + the signal."""
    run = start(out, resume=run_dir.last_checkpoint(out).exists())
    if stop is not None:
        number, at, later = stop
        kill = functools.partial(os.kill, os.getpid(), number)
        before_step(run, at, threading.Timer(later, kill).start if number == signal.SIGKILL else kill)
    with run_dir.locked(out):
        ended_by = run.run()
    return FINISHED if ended_by is None else 128 + ended_by


def stopped(start: Callable, out: Path, max_iters: int, numbers: random.Random) -> str:
    """Train until a drawn signal at a drawn step. Returns what came of it."""
    number = numbers.choice(SIGNALS)
    done = checkpoint.load(run_dir.last_checkpoint(out)).step if run_dir.last_checkpoint(out).exists() else 0
    if done == max_iters:
        return "finished"
    at = numbers.randrange(done, max_iters)
    status = forked(functools.partial(train, start, out, (number, at, numbers.uniform(0, 0.02))))
    if number == signal.SIGKILL or at + 1 == max_iters:  # in the last step a run may as well end
        assert status in (FINISHED, -number, 128 + number), status
    else:
        assert status == 128 + number, f"{number.name} at step {at}: ended with {status}"
        assert checkpoint.load(run_dir.last_checkpoint(out)).step == at + 1, (
            f"{number.name}: saved another step than the one it was in"
        )
    return number.name


def case(n: int) -> str:
    numbers = draw("resume", n)
    preset, backend = drawn(numbers), BACKENDS[n % len(BACKENDS)]
    start = functools.partial(trainer, preset, backend, numbers.randint(1, preset.train.shards))
    straight, resumed = scratch() / "straight", scratch() / "resumed"
    for out in (straight, resumed):
        shutil.rmtree(out, ignore_errors=True)

    assert forked(functools.partial(train, start, straight)) == FINISHED
    signals = [stopped(start, resumed, preset.train.max_iters, numbers) for _ in range(numbers.randint(1, 2))]
    assert forked(functools.partial(train, start, resumed)) == FINISHED

    for path in (run_dir.best_checkpoint, run_dir.last_checkpoint):
        assert equal(checkpoint.load(path(straight)), checkpoint.load(path(resumed))), f"{preset}: {path(resumed).name} differs"
    losses = [[(r["step"], r["train_loss"], r["val_loss"]) for r in run_dir.read_metrics(out, 99)] for out in (straight, resumed)]
    assert losses[0] == losses[1], f"{preset}: the records differ"
    return f"{backend}, {signals[-1]} last"


if __name__ == "__main__":
    main(case, 200)
