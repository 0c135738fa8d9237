"""A process that saves again and again is killed at a random moment.

What must hold: `best` and `last` are whole, and hold the last checkpoint whose save had returned, or the one that was being saved;
`last` is never newer than `best`; the next start sweeps what was left.
"""

import dataclasses
import itertools
import mmap
import os
import shutil
import signal
import time
from pathlib import Path

from gpt.config import ModelConfig
from gpt.training import checkpoint, run_dir
from gpt.training.checkpoint import Checkpoint
from prove.harness import draw, main, scratch
from prove.subject import checkpoint_of, equal

MODEL = ModelConfig("gpt", vocab_size=64, block_size=32, n_layer=2, n_head=2, n_embd=32)  # a file of 390 KB
EVEN_ODD = [checkpoint_of(MODEL, parity) for parity in (0, 1)]


def checkpoint_at(step: int) -> Checkpoint:
    """The checkpoint of a step; its values are not those of the step before."""
    return dataclasses.replace(EVEN_ODD[step % 2], step=step)


def save_until_killed(out: Path, returned: mmap.mmap) -> None:
    parent = os.getppid()
    for step in itertools.count(1):
        checkpoint.save(run_dir.best_checkpoint(out), checkpoint_at(step))
        checkpoint.link_or_copy(run_dir.best_checkpoint(out), run_dir.last_checkpoint(out))
        returned[:8] = step.to_bytes(8, "little")
        if os.getppid() != parent:  # the proof was stopped
            return


def case(n: int) -> str:
    out, returned = scratch() / "run", mmap.mmap(-1, 8)  # shared with the process that saves
    shutil.rmtree(out, ignore_errors=True)
    pid = os.fork()
    if pid == 0:
        try:
            save_until_killed(out, returned)
        finally:
            os._exit(1)
    while not any(returned[:8]):
        time.sleep(0.0005)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the process that saves ended by itself"
    time.sleep(draw("kill", n).uniform(0, 0.005))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the process that saves ended by itself"
    step = int.from_bytes(returned[:8], "little")

    best, last = (checkpoint.load(path(out)) for path in (run_dir.best_checkpoint, run_dir.last_checkpoint))
    for found in (best, last):
        assert found.step in (step, step + 1), f"save {step} had returned, but step {found.step} is there"
        assert equal(found, checkpoint_at(found.step))
    assert last.step <= best.step
    left = len(list(out.glob("*.tmp-*")))
    with run_dir.locked(out):
        assert not list(out.glob("*.tmp-*"))
    return "an orphan swept" if left else "the new one, its save had not returned" if best.step > step else "the old one"


if __name__ == "__main__":
    main(case, 20_000, chunk=10)
