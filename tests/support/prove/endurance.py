"""A run of 10,000 steps with evaluations and checkpoints does not grow in memory, files or threads.

    PYTHONPATH=.:tests/support python -m prove.endurance [STEPS]

The first two fifths are the warm-up: matplotlib fills its caches over some 130 pictures. Of fewer than 10,000 steps the memory is
printed and not judged. It is what the system counts (resident), so this needs /proc.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gpt.config import Preset, TrainConfig
from gpt.training import run_dir, run_setup
from gpt.training.backends import select_backend
from gpt.training.data_parallel import Workers
from gpt.training.trainer import Trainer
from small import PANGRAMS, config_of
from tensorlite import pick_device

PROC = Path("/proc/self")
FULL = 10_000  # steps


def resident_bytes() -> int:
    return int((PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_resources() -> dict[str, int]:
    """What a process can leak."""
    return {"files": len(os.listdir(PROC / "fd")), "threads": len(os.listdir(PROC / "task"))}


def prove(steps: int) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        out, text = Path(temporary) / "run", Path(temporary) / "text"
        text.write_text(PANGRAMS)
        train = TrainConfig(batch_size=4, shards=2, max_iters=steps, eval_interval=25, eval_batches=2)
        setup = run_setup.new_run(Preset(config_of("gpt", dropout=0.2), train, ""), {}, {}, out, text, seed=1)
        with run_dir.locked(out):
            run = Trainer(setup, Workers(select_backend("fast", pick_device("cpu")).make, shards=2, threads=2), np)
            seen: list[tuple[int, dict[str, int]]] = []

            def look(_: str) -> None:
                run.writer.wait()  # so that a file that is being written is not counted
                if run.state.step >= steps // 5 * 2:
                    seen.append((resident_bytes(), open_resources()))

            run.log = look
            assert run.run() is None, "a signal ended it"
    (first, open_first), (last, open_last) = seen[0], seen[-1]
    growth = last / first - 1
    assert open_first == open_last, f"{open_first} became {open_last}"
    assert growth < 0.01 or steps < FULL, f"{first} bytes became {last}, {growth:+.2%}"
    return f"{first / 2**20:.1f} MiB became {last / 2**20:.1f}, {growth:+.2%}; {open_last}; {len(seen)} evaluations"


if __name__ == "__main__":
    wanted, started = int((sys.argv[1:] or [FULL])[0]), time.perf_counter()
    if not PROC.exists():
        sys.exit("this system has no /proc")
    result = prove(wanted)
    print(f"endurance: {wanted:,} steps in {time.perf_counter() - started:.0f} s: {result}")
